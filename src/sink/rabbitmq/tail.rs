//! `tail`: its own queue, bound to everything in the exchange, that is deleted when the connection closes.
//!
//! While that queue exists no event is unroutable, so if nobody else has bound a queue, the events seen
//! here count as delivered, and are gone.

use std::collections::HashSet;

use anyhow::{Context as _, anyhow, bail};
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::super::{Terms, session, subscribed};
use super::message::PREFIX;
use super::topology::{self, Entity};
use super::{Config, Rabbitmq};
use crate::message::reassemble;

/// Events in flight to a reader that has not caught up.
const PREFETCH: u16 = 256;

/// Events that the broker keeps for a reader that has stopped reading; then the oldest are dropped, so
/// that watching never fills the broker.
const MOST_WAITING: i32 = 100_000;

/// With `from_start`, first shows what is waiting in the configured queue, and returns it. Each such look
/// counts as a delivery if the queue has a delivery limit (quorum queues: 20 from RabbitMQ 4.0 on): past
/// it the broker drops or dead-letters the event.
pub(in crate::sink) async fn tail(
    config: &Config,
    terms: &Terms,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let rabbitmq = Rabbitmq::new(config, terms)?;
    let past = match (from_start, &config.queue) {
        (false, _) => None,
        (true, Some(queue)) => Some(queue.as_str()),
        (true, None) => bail!(
            "there is no past to show: an exchange keeps nothing, only queues do; name one in \
             rabbitmq.queue, or leave --from-start out"
        ),
    };
    let link = session::open(&rabbitmq).await?;
    let result = tokio::select! {
        result = show(&link.connection, &config.exchange, past, &lines) => result,
        () = lines.closed() => Ok(()),
    };
    link.say_goodbye().await;
    result
}

async fn show(
    connection: &Connection,
    exchange: &str,
    past: Option<&str>,
    lines: &mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let channel = connection.create_channel().await?;
    // Bound before the past is shown, so that nothing is missed in between.
    let own = bind_own(&channel, exchange)
        .await
        .with_context(|| format!("cannot bind a queue to the exchange {exchange:?}"))?;
    subscribed(past.is_some());
    let mut shown = HashSet::new();
    if let Some(queue) = past {
        shown = show_past(connection, queue, lines)
            .await
            .with_context(|| format!("cannot show what waits in the queue {queue:?}"))?;
    }
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut events = channel.basic_consume(own, "".into(), options, arguments).await?;
    while let Some(delivery) = events.next().await {
        let delivery = delivery.context("the connection to RabbitMQ is lost")?;
        let is_new = !id(&delivery.properties).is_some_and(|id| shown.remove(id));
        if is_new
            && let Some(line) = line(&delivery)
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

/// Shows what is waiting in `queue` now, and returns the ids. When the channel closes, unacknowledged
/// events go back to their places in the queue.
async fn show_past(
    connection: &Connection,
    queue: &str,
    lines: &mpsc::Sender<String>,
) -> anyhow::Result<HashSet<String>> {
    let waiting = Entity::Queue(queue).look(connection).await?.events;
    let channel = connection.create_channel().await?;
    let mut shown = HashSet::new();
    for _ in 0..waiting {
        let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? else {
            break;
        };
        shown.extend(id(&got.properties).map(str::to_owned));
        if let Some(line) = line(&got.delivery) {
            lines.send(line).await?;
        }
    }
    channel.close(200, "OK".into()).await?;
    Ok(shown)
}

fn id(properties: &BasicProperties) -> Option<&str> {
    properties.message_id().as_ref().map(ShortString::as_str)
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
