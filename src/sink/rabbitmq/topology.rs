//! Exchange and queue: created, looked at, or left alone, as `rabbitmq.declare` says. A declaration
//! that fails closes its channel, so each has one to throw away.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error, ErrorKind, ExchangeKind, Queue};

use super::super::{Kind, Reason};
use super::errors;
use crate::config::{Declare, Rabbitmq};

/// Everything that is published to the exchange.
pub(super) const EVERYTHING: &str = "#";

/// An exchange or a queue.
#[derive(Clone, Copy)]
pub(super) enum Thing<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

pub(super) async fn declare(
    connection: &Connection,
    config: &Rabbitmq,
    vhost: &str,
) -> Result<(), Reason> {
    let is_passive = match config.declare {
        Declare::None => return Ok(()),
        Declare::Passive => true,
        Declare::Active => false,
    };
    let exchange = Thing::Exchange(&config.exchange);
    let declared = declare_exchange(connection, &config.exchange, is_passive).await;
    declared.map_err(|error| explain(&error, exchange, vhost))?;
    if let Some(name) = &config.queue {
        let queue = Thing::Queue(name);
        let declared = declare_queue(connection, name, is_passive).await;
        declared.map_err(|error| explain(&error, queue, vhost))?;
        if !is_passive {
            let bound = bind(connection, name, &config.exchange).await;
            bound.map_err(|error| explain(&error, queue, vhost))?;
        }
    }
    Ok(())
}

/// A durable topic exchange; with `is_passive`, whether there is one of that name.
pub(super) async fn declare_exchange(
    connection: &Connection,
    name: &str,
    is_passive: bool,
) -> Result<(), Error> {
    let channel = connection.create_channel().await?;
    let options =
        ExchangeDeclareOptions { passive: is_passive, durable: true, ..Default::default() };
    let arguments = FieldTable::default();
    channel.exchange_declare(name.into(), ExchangeKind::Topic, options, arguments).await?;
    channel.close(200, "OK".into()).await
}

/// A quorum queue; with `is_passive`, whether there is any of that name.
pub(super) async fn declare_queue(
    connection: &Connection,
    name: &str,
    is_passive: bool,
) -> Result<Queue, Error> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: is_passive, durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let queue = channel.queue_declare(name.into(), options, arguments).await?;
    channel.close(200, "OK".into()).await?;
    Ok(queue)
}

async fn bind(connection: &Connection, queue: &str, exchange: &str) -> Result<(), Error> {
    let channel = connection.create_channel().await?;
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.into(), exchange.into(), EVERYTHING.into(), options, arguments)
        .await?;
    channel.close(200, "OK".into()).await
}

/// The broker's reply code, where the error is one of its answers.
pub(super) fn code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Why a declaration failed, and what mends it.
pub(super) fn explain(error: &Error, thing: Thing, vhost: &str) -> Reason {
    let says = match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().as_str(),
        _ => return errors::sort(error),
    };
    let (what, key, name, needed, delete) = match thing {
        Thing::Exchange(name) => {
            let delete = format!("rabbitmqadmin --vhost={vhost} delete exchange name={name}");
            ("exchange", "rabbitmq.exchange", name, "a durable topic exchange", delete)
        }
        Thing::Queue(name) => {
            let delete = format!("rabbitmqctl delete_queue -p {vhost} {name}");
            ("queue", "rabbitmq.queue", name, "a durable quorum queue", delete)
        }
    };
    match code(error) {
        Some(404) => {
            let text = format!(
                "there is no {what} {name:?} in the virtual host {vhost:?}: create it, or set \
                 rabbitmq.declare = \"active\" and the bridge does"
            );
            Reason::new(Kind::Topology, text)
        }
        Some(405 | 406) => {
            let text = format!(
                "the {what} {name:?} is not {needed}; RabbitMQ says {says}: delete it if nobody \
                 needs it as it is (`{delete}`), name another one in {key}, or set \
                 rabbitmq.declare = \"passive\" to publish to it all the same"
            );
            Reason::new(Kind::Topology, text)
        }
        Some(403) => {
            let text = format!(
                "the bridge may not declare the {what} {name:?}; RabbitMQ says {says}: grant it with \
                 `rabbitmqctl set_permissions -p {vhost} …`, or set rabbitmq.declare = \"passive\" \
                 where somebody else declares it"
            );
            Reason::new(Kind::Credentials, text)
        }
        _ => errors::sort(error),
    }
}
