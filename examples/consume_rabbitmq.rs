//! Reads topic-created events from the queue that the bridge declares in RabbitMQ. Several of these
//! share its events. With COUNT=n it ends after n events, else at Ctrl-C.
//!
//! `cargo run --example consume_rabbitmq`

mod shared;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use shared::{Worker, read_event, setting};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let url = setting("RABBITMQ_URL", "amqp://127.0.0.1:5672/%2f");
    let queue = setting("RABBITMQ_QUEUE", "chat.topic.created");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // So many events are on their way at once; without it the whole queue would be.
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consuming = channel.basic_consume(queue.into(), "".into(), options, arguments);
    let mut deliveries = consuming.await?;

    let mut worker = Worker::new()?;
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    while !worker.is_done() {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            _ = &mut stop => break,
        };
        // What was not acknowledged by then is given to the next consumer.
        let delivery = delivery.context("the connection or the queue is gone: start again")??;
        match event(&delivery) {
            Ok(event) => {
                worker.work(&event);
                delivery.ack(BasicAckOptions::default()).await?;
            }
            Err(error) => {
                eprintln!("not an event, rejected: {error:#}");
                delivery.reject(BasicRejectOptions { requeue: false }).await?;
            }
        }
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn event(delivery: &Delivery) -> anyhow::Result<Value> {
    let properties = &delivery.properties;
    let content_type = properties.content_type().as_ref().map_or("", |text| text.as_str());
    let headers = properties.headers().as_ref().into_iter().flat_map(FieldTable::inner);
    let attributes = headers.filter_map(|(name, value)| {
        let AMQPValue::LongString(value) = value else { return None };
        Some((name.as_str().strip_prefix("ce-")?.to_owned(), value.to_string()))
    });
    read_event(content_type, attributes, &delivery.data)
}
