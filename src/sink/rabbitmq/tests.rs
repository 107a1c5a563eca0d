//! The judging of batches, with the real library against a real broker.

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use servers::{Kind, Way};

use super::super::access::ClientTls;
use super::super::session::Delivery;
use super::config::Declare;
use super::topology::Entity;
use super::*;
use crate::message::Encoding;
use crate::outbox::Stored;
use crate::routing::Template;
use crate::spans::Spans;
use crate::time::Timestamp;

#[path = "../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "only RabbitMQ's plain address is used here")]
mod servers;

type Sink = Delivery<Rabbitmq>;

/// A sink with an exchange of its own, and no queue yet. Nothing where the run is told to leave RabbitMQ out.
async fn sink(name: &str) -> Option<Sink> {
    let url = servers::shared(Kind::Rabbitmq)?.address(Way::Plain);
    let config = Config {
        url: url.parse().unwrap(),
        username: None,
        password: None,
        tls: ClientTls::default(),
        exchange: format!("test-{name}-{}", std::process::id()),
        routing_key: Template::parse("test.{group_id}").unwrap(),
        declare: Declare::Active,
        queue: None,
    };
    let address = Address::new(&config).unwrap();
    let rabbitmq = Rabbitmq { config, address, patience: Duration::from_secs(5) };
    let mut sink = Delivery::new(rabbitmq, None);
    sink.ready().await.unwrap();
    Some(sink)
}

async fn deliver(sink: &mut Sink, events: &[Stored]) -> Vec<Verdict> {
    let outgoing = |stored| Outgoing::new(stored, Encoding::Structured);
    sink.deliver(events.iter().map(outgoing).collect(), &Spans::off()).await
}

/// A queue, gone with the connection, bound for the events of one group.
async fn bind(sink: &Sink, group: &str, arguments: FieldTable) -> String {
    let channel = sink.session().unwrap().connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, arguments).await.unwrap().name().clone();
    let (key, exchange) =
        (format!("test.{group}"), sink.session().unwrap().rabbitmq.config.exchange.as_str());
    let options = QueueBindOptions::default();
    let bound =
        channel.queue_bind(queue.clone(), exchange.into(), key.into(), options, <_>::default());
    bound.await.unwrap();
    queue.to_string()
}

async fn end(sink: Sink) {
    delete_exchange(&sink).await;
    sink.close().await;
}

async fn delete_exchange(sink: &Sink) {
    let channel = sink.session().unwrap().connection.create_channel().await.unwrap();
    channel
        .exchange_delete(
            sink.session().unwrap().rabbitmq.config.exchange.as_str().into(),
            <_>::default(),
        )
        .await
        .unwrap();
}

async fn waiting(sink: &Sink, queue: &str) -> u32 {
    Entity::Queue(queue).look(&sink.session().unwrap().connection).await.unwrap().events
}

fn event(number: u64, group: &str) -> Stored {
    let id = uuid::Uuid::from_u128(number.into());
    let event = format!(
        r#"{{"specversion":"1.0","id":"{id}","type":"t","source":"/apps/1","subject":"topic-{number}",
        "time":"2026-11-22T18:00:00.000Z","datacontenttype":"application/json",
        "partitionkey":"{group}","data":{{"sdk_app_id":1}}}}"#
    );
    Stored::of(number, Timestamp::from_millis(1_700_000_000_000), &event)
}

/// Trusting each confirm for itself, one in fifty of the unroutable ones would count as delivered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs brokers: run tests/run.sh"]
async fn every_event_is_judged_rightly_among_unroutable_ones() {
    let Some(mut sink) = sink("judged").await else { return };
    let queue = bind(&sink, "bound", FieldTable::default()).await;
    let is_bound = |number: u64| fastrand::Rng::with_seed(number).bool();
    for batch in 0..20 {
        let numbers = batch * 512..(batch + 1) * 512;
        let events = numbers.clone().map(|n| event(n, if is_bound(n) { "bound" } else { "other" }));
        let verdicts = deliver(&mut sink, &events.collect::<Vec<_>>()).await;
        for (number, verdict) in numbers.zip(&verdicts) {
            let expected = if is_bound(number) { "delivered" } else { "later unroutable" };
            assert_eq!(verdict.to_string(), expected, "event {number}: {verdict:?}");
        }
    }
    let bound = (0..20 * 512).filter(|number| is_bound(*number)).count();
    assert_eq!(waiting(&sink, &queue).await as usize, bound);
    end(sink).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs brokers: run tests/run.sh"]
async fn a_deleted_exchange_is_declared_again_and_nothing_counts_as_delivered_meanwhile() {
    let Some(mut sink) = sink("deleted").await else { return };
    delete_exchange(&sink).await;
    let events: Vec<_> = (0..512).map(|number| event(number, "group")).collect();
    let verdicts = deliver(&mut sink, &events).await;
    assert!(
        verdicts.iter().all(|verdict| verdict.to_string() == "away topology"),
        "{:?}",
        verdicts[0]
    );
    sink.ready().await.unwrap();
    bind(&sink, "group", FieldTable::default()).await;
    let verdicts = deliver(&mut sink, &events).await;
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Delivered), "{:?}", verdicts[0]);
    end(sink).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs brokers: run tests/run.sh"]
async fn what_a_full_queue_rejects_keeps_its_place_in_the_line() {
    let Some(mut sink) = sink("full").await else { return };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(10));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let queue = bind(&sink, "group", arguments).await;
    let events: Vec<_> = (0..100).map(|number| event(number, "group")).collect();
    let verdicts = deliver(&mut sink, &events).await;
    let rejected = verdicts.iter().filter(|verdict| verdict.to_string() == "away rejected").count();
    assert_eq!(rejected, 100 - waiting(&sink, &queue).await as usize);
    assert!(rejected > 0);
    end(sink).await;
}
