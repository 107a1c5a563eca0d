//! What a broker's client library publishes by itself, as fast as it can: no outbox, no relay, but
//! the same client with the same settings, the same message to the same place, and each one
//! confirmed. Whatever the bridge takes beyond this to drain a backlog is the bridge's own cost.
//! Connecting is not measured.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::context::ContextBuilder;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::machine::cpu_seconds;
use super::server::APP;
use super::servers::Kind;

/// Of one message, and of the last ones.
const PATIENCE: Duration = Duration::from_secs(60);
const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";
const EVENT_TYPE: &str = "chat.topic.created.v1";
const GROUP: &str = "@TGS#2J4SZEAEL";

/// What to publish, and how.
pub(crate) struct Work {
    pub(crate) url: String,
    pub(crate) count: u64,
    /// Messages unconfirmed at the most.
    pub(crate) window: usize,
}

/// Messages a second, and the CPU for one in µs.
pub(crate) struct Published {
    pub(crate) rate: f64,
    pub(crate) cpu: f64,
}

/// Taken when all is ready to publish.
struct Started(Instant, f64);

impl Started {
    fn now() -> anyhow::Result<Self> {
        Ok(Self(Instant::now(), cpu_seconds(std::process::id())?))
    }
}

pub(crate) async fn publish(kind: Kind, work: Work) -> anyhow::Result<Published> {
    let count = work.count as f64;
    // A task of the runtime's own: what `block_on` polls itself is woken across threads.
    let publishing = match kind {
        Kind::Kafka => tokio::spawn(kafka(work)),
        Kind::Rabbitmq => tokio::spawn(rabbitmq(work)),
        Kind::Nats => tokio::spawn(nats(work)),
    };
    let Started(at, cpu) = publishing.await??;
    let cpu = cpu_seconds(std::process::id())? - cpu;
    Ok(Published { rate: count / at.elapsed().as_secs_f64(), cpu: cpu / count * 1e6 })
}

/// A CloudEvent as the bridge encodes one, and what goes along with it.
struct Event {
    id: String,
    traceparent: String,
    body: String,
}

impl Event {
    fn new(number: u64) -> Self {
        let random = fastrand::u128(..);
        let id = uuid::Uuid::from_u128(random).to_string();
        let traceparent = format!("00-{random:032x}-{:016x}-01", random as u64);
        let topic = format!("@TGS#_{GROUP}@TOPIC#_@TOPIC#c{number:012x}");
        let time = "2026-11-22T18:00:00.123Z";
        let body = format!(
            r#"{{"specversion":"1.0","id":"{id}","type":"{EVENT_TYPE}","source":"/apps/{APP}","subject":"{topic}","time":"{time}","datacontenttype":"application/json","dataschema":"urn:topic-bridge:schema:topic-created:v1","partitionkey":"{GROUP}","data":{{"sdk_app_id":{APP},"topic_id":"{topic}","topic_name":"MyFirstTopic","group_id":"{GROUP}","group_type":"Community","operator":"group_root","owner":"leckie","client":{{"ip":"127.0.0.1","platform":"RESTAPI"}},"accepted_at":"{time}"}}}}"#
        );
        Self { id, traceparent, body }
    }
}

/// Publishes one after the other, and where the window is full waits for the oldest confirmation.
async fn windowed<C: IntoFuture<IntoFuture: Send> + Send, P>(
    work: &Work,
    mut publish: impl FnMut(Event) -> P,
    check: fn(C::Output) -> anyhow::Result<()>,
) -> anyhow::Result<()>
where
    P: Future<Output = anyhow::Result<C>>,
{
    let mut unconfirmed = VecDeque::with_capacity(work.window);
    for number in 0..work.count + work.window as u64 {
        let is_full = unconfirmed.len() == work.window || number >= work.count;
        if is_full && let Some(oldest) = unconfirmed.pop_front() {
            let confirmed = timeout(PATIENCE, IntoFuture::into_future(oldest)).await;
            check(confirmed.context("nothing was confirmed for long")?)?;
        }
        if number < work.count {
            unconfirmed.push_back(publish(Event::new(number)).await?);
        }
    }
    Ok(())
}

/// async-nats, with JetStream: a stream in files that stores each message id once.
async fn nats(work: Work) -> anyhow::Result<Started> {
    let client = async_nats::connect(&work.url).await?;
    let room = work.window.max(1 << 16);
    let context = ContextBuilder::new().timeout(PATIENCE).max_ack_inflight(room).build(client);
    let subject = async_nats::Subject::from(format!("chat.topic.created.{APP}"));
    let started = Started::now()?;
    let publish = |event: Event| {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event.id.as_str());
        headers.insert(NATS_EXPECTED_STREAM, "CHAT_TOPICS");
        headers.insert("Content-Type", CONTENT_TYPE);
        headers.insert("traceparent", event.traceparent.as_str());
        let (context, subject) = (&context, subject.clone());
        async move { Ok(context.publish_with_headers(subject, headers, event.body.into()).await?) }
    };
    windowed(&work, publish, |confirmed| Ok(confirmed.map(drop)?)).await?;
    Ok(started)
}

/// lapin, with publisher confirms: persistent and mandatory messages to a quorum queue.
async fn rabbitmq(work: Work) -> anyhow::Result<Started> {
    let connection = Connection::connect(&work.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let exchange = ShortString::from("chat.topics");
    let key = ShortString::from(format!("topic.created.{APP}"));
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let started = Started::now()?;
    let publish = |event: Event| {
        let (channel, exchange, key) = (&channel, exchange.clone(), key.clone());
        let mut headers = FieldTable::default();
        let traceparent = AMQPValue::LongString(event.traceparent.as_str().into());
        headers.insert("traceparent".into(), traceparent);
        let properties = BasicProperties::default()
            .with_delivery_mode(2) // persistent
            .with_message_id(ShortString::from(&*event.id))
            .with_timestamp(1_700_000_000)
            .with_content_type(CONTENT_TYPE.into())
            .with_type(EVENT_TYPE.into())
            .with_app_id("topic-bridge".into())
            .with_headers(headers);
        async move {
            let body = event.body.as_bytes();
            Ok(channel.basic_publish(exchange, key, options, body, properties).await?)
        }
    };
    let check = |confirmed: lapin::Result<Confirmation>| match confirmed? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("a message was not taken: {other:?}"),
    };
    windowed(&work, publish, check).await?;
    Ok(started)
}

/// A permit for each message that may still be unconfirmed; closed when one is not taken.
/// librdkafka confirms to a callback on a thread of its own: the cheapest way there is, with no
/// future for each.
struct Room(Arc<Semaphore>);

impl ClientContext for Room {}

impl ProducerContext for Room {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => self.0.add_permits(1),
            Err(_) => self.0.close(),
        }
    }
}

/// librdkafka with an idempotent producer.
async fn kafka(work: Work) -> anyhow::Result<Started> {
    const TOPIC: &str = "chat.topic.created";
    let room = Arc::new(Semaphore::new(work.window));
    let producer: ThreadedProducer<Room> = ClientConfig::new()
        .set("bootstrap.servers", &work.url)
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("queue.buffering.max.messages", (2 * work.window).max(1000).to_string())
        .set("partitioner", "murmur2_random")
        .create_with_context(Room(Arc::clone(&room)))?;
    // Connected, and with the topic's leaders known.
    let knowing = producer.clone();
    tokio::task::spawn_blocking(move || knowing.client().fetch_metadata(Some(TOPIC), PATIENCE))
        .await?
        .context("cannot reach the broker")?;

    let started = Started::now()?;
    for number in 0..work.count {
        take(&room, 1).await?;
        let event = Event::new(number);
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "content-type", value: Some(CONTENT_TYPE) })
            .insert(Header { key: "traceparent", value: Some(&event.traceparent) });
        let record = BaseRecord::to(TOPIC).key(GROUP).payload(&event.body).headers(headers);
        producer.send(record).map_err(|(error, _)| anyhow!(error))?;
    }
    take(&room, u32::try_from(work.window)?).await?;
    Ok(started)
}

async fn take(room: &Semaphore, permits: u32) -> anyhow::Result<()> {
    let taken = timeout(PATIENCE, room.acquire_many(permits)).await;
    taken.context("nothing was confirmed for long")?.context("a message was not taken")?.forget();
    Ok(())
}
