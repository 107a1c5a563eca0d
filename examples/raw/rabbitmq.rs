//! lapin, with publisher confirms: persistent and mandatory messages to a quorum queue.

use std::collections::VecDeque;

use anyhow::{Context as _, bail};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    PublisherConfirm,
};
use tokio::time::timeout;

use super::{APP, CONTENT_TYPE, EVENT_TYPE, Event, PATIENCE, Started, Work};

const PERSISTENT: u8 = 2;

pub(crate) async fn publish(work: Work) -> anyhow::Result<(Started, u64)> {
    let connection = Connection::connect(&work.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    declare(&channel, &work.place).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (exchange, key) = (ShortString::from(&*work.place), ShortString::from(routing_key()));
    let options = BasicPublishOptions { mandatory: true, immediate: false };

    let started = Started::now()?;
    let mut unconfirmed = VecDeque::with_capacity(work.window);
    for number in 0..work.count {
        if unconfirmed.len() == work.window {
            confirm(unconfirmed.pop_front()).await?;
        }
        let event = Event::new(number);
        let (properties, body) = (properties(&event)?, event.body.as_bytes());
        let publish =
            channel.basic_publish(exchange.clone(), key.clone(), options, body, properties);
        unconfirmed.push_back(publish.await?);
    }
    while !unconfirmed.is_empty() {
        confirm(unconfirmed.pop_front()).await?;
    }
    Ok((started, work.count))
}

async fn confirm(oldest: Option<PublisherConfirm>) -> anyhow::Result<()> {
    let Some(oldest) = oldest else { return Ok(()) };
    match timeout(PATIENCE, oldest).await.context("nothing was confirmed for long")?? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("a message was not taken: {other:?}"),
    }
}

fn routing_key() -> String {
    format!("topic.created.{APP}")
}

fn properties(event: &Event) -> anyhow::Result<BasicProperties> {
    let mut headers = FieldTable::default();
    let traceparent = AMQPValue::LongString(event.traceparent.as_str().into());
    headers.insert("traceparent".into(), traceparent);
    Ok(BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(ShortString::try_new(event.id.as_str())?)
        .with_timestamp(1_700_000_000)
        .with_content_type(CONTENT_TYPE.into())
        .with_type(EVENT_TYPE.into())
        .with_app_id("topic-bridge".into())
        .with_headers(headers))
}

/// A durable topic exchange, and a quorum queue of the same name bound to all of it.
async fn declare(channel: &Channel, place: &str) -> anyhow::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let none = FieldTable::default();
    channel.exchange_declare(place.into(), ExchangeKind::Topic, options, none.clone()).await?;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(place.into(), options, quorum).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(place.into(), place.into(), "#".into(), options, none).await?;
    Ok(())
}
