//! `tail`: its own queue, bound to everything in the exchange, that is deleted when the connection closes.
//!
//! While that queue exists no event is unroutable, so if nobody else has bound a queue, the events seen
//! here count as delivered, and are gone.

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::super::{Terms, session, subscribed};
use super::message::PREFIX;
use super::topology;
use super::{Config, Rabbitmq};
use crate::message::reassemble;

/// Events in flight to a reader that has not caught up.
const PREFETCH: u16 = 256;

/// Events that the broker keeps for a reader that has stopped reading; then the oldest are dropped, so
/// that watching never fills the broker.
const MOST_WAITING: i32 = 100_000;

/// Begins with the next event: AMQP can only show what waits in a queue by taking it, and what is given back stands
/// in another order for the consumers.
pub(in crate::sink) async fn tail(
    config: &Config,
    terms: &Terms,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let rabbitmq = Rabbitmq::new(config, terms)?;
    let link = session::open(&rabbitmq).await?;
    let result = tokio::select! {
        result = show(&link.connection, &config.exchange, &lines) => result,
        () = lines.closed() => Ok(()),
    };
    link.say_goodbye().await;
    result
}

async fn show(
    connection: &Connection,
    exchange: &str,
    lines: &mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let channel = connection.create_channel().await?;
    let own = bind_own(&channel, exchange)
        .await
        .with_context(|| format!("cannot bind a queue to the exchange {exchange:?}"))?;
    subscribed(false);
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut events = channel.basic_consume(own, "".into(), options, arguments).await?;
    while let Some(delivery) = events.next().await {
        let delivery = delivery.context("the connection to RabbitMQ is lost")?;
        if let Some(line) = line(&delivery)
            && lines.send(line).await.is_err()
        {
            return Ok(());
        }
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Err(anyhow!("RabbitMQ has ended the subscription"))
}

async fn bind_own(channel: &Channel, exchange: &str) -> Result<ShortString, lapin::Error> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(MOST_WAITING));
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let own = channel.queue_declare("".into(), options, arguments).await?.name().clone();
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    let everything = topology::EVERYTHING.into();
    channel.queue_bind(own.clone(), exchange.into(), everything, options, arguments).await?;
    Ok(own)
}

/// The CloudEvent as a line, if the message is one: others may publish to the exchange too.
fn line(delivery: &Delivery) -> Option<String> {
    let body = str::from_utf8(&delivery.data).ok()?;
    let properties = &delivery.properties;
    let content_type = properties.content_type().as_ref().map_or("", ShortString::as_str);
    if content_type.starts_with("application/cloudevents+json") {
        // In JSON, line breaks only occur between tokens.
        return Some(body.replace(['\r', '\n'], " "));
    }
    let headers = properties.headers().as_ref()?.inner();
    let attribute = |name: &str| match (name, headers.get(format!("{PREFIX}{name}").as_str())) {
        ("datacontenttype", _) => Some(content_type.to_owned()),
        (_, Some(AMQPValue::LongString(value))) => Some(value.to_string()),
        _ => None,
    };
    let is_event = attribute("specversion").is_some();
    let is_json = serde_json::from_str::<&RawValue>(body).is_ok();
    (is_event && is_json).then(|| reassemble(attribute, body))
}
