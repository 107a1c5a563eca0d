//! librdkafka with an idempotent producer. Its confirmations come to a callback on a thread of their
//! own, the cheapest way there is: no future for each message.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, anyhow, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{CONTENT_TYPE, Event, GROUP, PATIENCE, Started, Work};

/// As the bridge creates its topic.
const PARTITIONS: i32 = 3;

/// What comes back.
#[derive(Clone)]
struct Confirmations {
    /// A permit for each message that may still be unconfirmed.
    room: Arc<Semaphore>,
    failure: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Confirmations {}

impl ProducerContext for Confirmations {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failure = self.failure.lock().expect("nothing panics under this lock");
            failure.get_or_insert(error.to_string());
        }
        self.room.add_permits(1);
    }
}

pub(crate) async fn publish(work: Work) -> anyhow::Result<(Started, u64)> {
    let brokers = work.url.trim_start_matches("kafka://");
    create_topic(brokers, &work.place).await?;
    let confirmations =
        Confirmations { room: Arc::new(Semaphore::new(work.window)), failure: Arc::default() };
    let producer: ThreadedProducer<Confirmations> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("queue.buffering.max.messages", (2 * work.window).max(1000).to_string())
        .set("partitioner", "murmur2_random")
        .create_with_context(confirmations.clone())?;
    // Connected, and with the topic's leaders known.
    let knowing = producer.clone();
    let topic = work.place.clone();
    tokio::task::spawn_blocking(move || knowing.client().fetch_metadata(Some(&topic), PATIENCE))
        .await?
        .context("cannot reach the broker")?;

    let started = Started::now()?;
    for number in 0..work.count {
        let permit = timeout(PATIENCE, confirmations.room.acquire()).await;
        permit.context("nothing was confirmed for long")??.forget();
        let event = Event::new(number);
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "content-type", value: Some(CONTENT_TYPE) })
            .insert(Header { key: "traceparent", value: Some(&event.traceparent) });
        let record = BaseRecord::to(&work.place).key(GROUP).payload(&event.body).headers(headers);
        producer.send(record).map_err(|(error, _)| anyhow!(error))?;
    }
    let all = u32::try_from(work.window)?;
    let last = timeout(PATIENCE, confirmations.room.acquire_many(all)).await;
    drop(last.context("the last messages were not confirmed")??);
    let failure = confirmations.failure.lock().expect("nothing panics under this lock").take();
    ensure!(failure.is_none(), "a message was not taken: {failure:?}");
    Ok((started, work.count))
}

async fn create_topic(brokers: &str, name: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
    for created in admin.create_topics([&topic], &AdminOptions::new()).await? {
        created.map_err(|(name, code)| anyhow!("cannot create the topic {name}: {code}"))?;
    }
    Ok(())
}
