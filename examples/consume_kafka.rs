//! Reads topic-created events from Kafka as a member of a consumer group, and goes on where the group
//! was. With COUNT=n it ends after n events, else at Ctrl-C.
//!
//! `cargo run --example consume_kafka`

mod shared;

use anyhow::bail;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use serde_json::Value;

use shared::{Worker, read_event, setting};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", setting("KAFKA_BROKERS", "127.0.0.1:9092"))
        .set("group.id", setting("KAFKA_GROUP", "topic-consumer"))
        // A new group begins with the oldest event that the topic still has.
        .set("auto.offset.reset", "earliest")
        // Offsets are committed in the background, but none before `store_offset` says that the work
        // is done.
        .set("enable.auto.offset.store", "false")
        .create()?;
    consumer.subscribe(&[&setting("KAFKA_TOPIC", "chat.topic.created")])?;

    let mut worker = Worker::new()?;
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    while !worker.is_done() {
        let message = tokio::select! {
            message = consumer.recv() => message,
            _ = &mut stop => break,
        };
        let message = match message {
            Ok(message) => message,
            Err(KafkaError::MessageConsumptionFatal(code)) => bail!("the client gave up: {code}"),
            Err(error) => {
                eprintln!("{error}: trying again");
                continue;
            }
        };
        match event(&message) {
            Ok(event) => worker.work(&event),
            Err(error) => eprintln!("not an event, passed over: {error:#}"),
        }
        // Refused where the partition has gone to another member meanwhile: that one reads it again.
        if let Err(error) = consumer.store_offset_from_message(&message) {
            eprintln!("not acknowledged: {error}");
        }
    }
    // Dropping the consumer commits what is stored and leaves the group.
    Ok(())
}

fn event(message: &BorrowedMessage) -> anyhow::Result<Value> {
    let headers: Vec<_> =
        message.headers().into_iter().flat_map(|headers| headers.iter()).collect();
    let text =
        |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    let content_type = headers.iter().find(|header| header.key == "content-type");
    let content_type = text(content_type.and_then(|header| header.value));
    let attributes = headers.iter().filter_map(|header| {
        Some((header.key.strip_prefix("ce_")?.to_owned(), text(header.value)))
    });
    read_event(&content_type, attributes, message.payload().unwrap_or_default())
}
