//! Exchange and queue: created, checked, or left alone, as `rabbitmq.declare` says. A failed declaration
//! closes its channel, so each one gets its own.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use super::super::session::{Failed, Steps};
use super::config::Declare;
use super::connection::Link;
use super::{Rabbitmq, errors};
use crate::verdict::{Kind, Reason};

/// Everything that is published to the exchange.
pub(super) const EVERYTHING: &str = "#";

/// An exchange or a queue.
#[derive(Clone, Copy)]
pub(super) enum Entity<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

/// How full a queue is; empty for an exchange.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) events: u32,
    consumers: u32,
}

/// Whether exchange and queue are as they should be; creates what is missing, if allowed.
pub(super) async fn check(link: &Link, steps: &mut Steps) -> Result<(), Failed> {
    let config = &link.rabbitmq.config;
    let exchange = check_entity(link, Entity::Exchange(&config.exchange), steps).await;
    steps.go_on(exchange)?;
    let Some(queue) = &config.queue else {
        let text = "none is configured: an event that no consumer's queue is bound for is retried until \
                    one is";
        if steps.is_look() {
            steps.doubtful("queue", text);
        }
        return Ok(());
    };
    check_entity(link, Entity::Queue(queue), steps).await
}

async fn check_entity(link: &Link, entity: Entity<'_>, steps: &mut Steps) -> Result<(), Failed> {
    let Rabbitmq { config, patience, .. } = &link.rabbitmq;
    let (connection, point) = (&link.connection, entity.what());
    let checking = async {
        let mut counts = Counts::default();
        if steps.is_look() {
            counts = match entity.look(connection).await {
                Err(error) if code(&error) == Some(404) && config.declare == Declare::Active => {
                    steps.doubtful(point, "missing: the bridge creates it at its start");
                    return Ok(None);
                }
                looked => looked?,
            };
        }
        match config.declare {
            // Declaring an existing entity again does not change it, and is the only way to check its
            // properties.
            Declare::Active => entity.declare(connection).await?,
            Declare::Passive if !steps.is_look() => counts = entity.look(connection).await?,
            Declare::Passive | Declare::None => {}
        }
        if let Entity::Queue(queue) = entity
            && config.declare == Declare::Active
            && !steps.is_look()
        {
            bind(connection, queue, &config.exchange).await?;
        }
        Ok(Some(counts))
    };
    let checked = timeout(*patience, checking).await;
    let checked = checked.map_err(|_| errors::silent(*patience).at(point))?;
    match checked
        .map_err(|error: Error| (code(&error), explain(&error, entity, link.rabbitmq.vhost())))
    {
        Ok(None) => {}
        Ok(Some(Counts { events, consumers })) => {
            let name = entity.name();
            steps.good(
                point,
                match entity {
                    Entity::Exchange(_) => format!("{name:?} is there"),
                    Entity::Queue(_) => {
                        format!("{name:?} is there: {events} waiting, {consumers} consumers")
                    }
                },
            );
        }
        // With declare = "none" the bridge itself does not need the queue.
        Err((Some(404), reason)) if config.declare == Declare::None && point == "queue" => {
            steps.doubtful(point, reason.text);
        }
        Err((_, reason)) => return Err(reason.at(point)),
    }
    Ok(())
}

impl<'a> Entity<'a> {
    fn name(self) -> &'a str {
        let (Entity::Exchange(name) | Entity::Queue(name)) = self;
        name
    }

    fn what(self) -> &'static str {
        match self {
            Entity::Exchange(_) => "exchange",
            Entity::Queue(_) => "queue",
        }
    }

    /// A durable topic exchange, or a quorum queue.
    async fn declare(self, connection: &Connection) -> Result<(), Error> {
        self.ask(connection, false).await.map(drop)
    }

    /// Whether one of that name exists, whatever its properties.
    pub(super) async fn look(self, connection: &Connection) -> Result<Counts, Error> {
        self.ask(connection, true).await
    }

    async fn ask(self, connection: &Connection, passive: bool) -> Result<Counts, Error> {
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        let counts = match self {
            Entity::Exchange(name) => {
                let options =
                    ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
                let kind = ExchangeKind::Topic;
                channel.exchange_declare(name.into(), kind, options, arguments).await?;
                Counts::default()
            }
            Entity::Queue(name) => {
                let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
                arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
                let queue = channel.queue_declare(name.into(), options, arguments).await?;
                Counts { events: queue.message_count(), consumers: queue.consumer_count() }
            }
        };
        channel.close(200, "OK".into()).await?;
        Ok(counts)
    }
}

async fn bind(connection: &Connection, queue: &str, exchange: &str) -> Result<(), Error> {
    let channel = connection.create_channel().await?;
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.into(), exchange.into(), EVERYTHING.into(), options, arguments)
        .await?;
    channel.close(200, "OK".into()).await
}

/// The broker's reply code, if the error is an answer from the broker.
fn code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Why a declaration failed, and how to fix it.
fn explain(error: &Error, entity: Entity, vhost: &str) -> Reason {
    let says = match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().as_str(),
        _ => return errors::sort(error),
    };
    let (what, key, name, needed, delete) = match entity {
        Entity::Exchange(name) => {
            let delete = format!("rabbitmqadmin --vhost={vhost} delete exchange name={name}");
            ("exchange", "rabbitmq.exchange", name, "a durable topic exchange", delete)
        }
        Entity::Queue(name) => {
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
