//! `check --connect`: connects, and looks at exchange and queue without creating any.

use lapin::{Connection, Error};
use tokio::time::timeout;

use super::super::{Finding, Health, Kind, Reason};
use super::connection::{self, Link};
use super::topology::{self, Thing};
use super::{Rabbitmq, errors};
use crate::config::{Config, Declare};

pub(in crate::sink) async fn examine(config: &Config) -> Vec<Finding> {
    let sink = match Rabbitmq::new(config) {
        Ok(sink) => sink,
        Err(error) => return vec![finding("configuration", Health::Bad, error.to_string())],
    };
    look_at(&sink).await
}

async fn look_at(sink: &Rabbitmq) -> Vec<Finding> {
    if let Err(reason) = connection::prepare(&sink.config, &sink.address) {
        return vec![finding("credentials", Health::Bad, reason.text)];
    }
    let answers = format!("RabbitMQ answers at {}", sink.address.shown());
    let answers = finding("connection", Health::Good, answers);
    let link = match Link::connect(&sink.config, &sink.address, sink.patience).await {
        Ok(link) => link,
        Err(Reason { kind: Kind::Credentials, text }) => {
            return vec![answers, finding("credentials", Health::Bad, text)];
        }
        Err(Reason { kind: Kind::Topology, text }) => {
            return vec![answers, finding("virtual host", Health::Bad, text)];
        }
        Err(reason) => return vec![finding("connection", Health::Bad, reason.text)],
    };
    let status = link.connection.status();
    let (user, vhost) = (status.username(), status.vhost());
    let findings = vec![
        answers,
        finding("credentials", Health::Good, format!("it lets the user {user:?} in")),
        finding("virtual host", Health::Good, format!("{:?} is open to that user", vhost.as_str())),
        look(sink, exchange(sink, &link.connection), "exchange").await,
        look(sink, queue(sink, &link.connection), "queue").await,
    ];
    link.close().await;
    findings
}

async fn look(
    sink: &Rabbitmq,
    looking: impl Future<Output = (Health, String)>,
    point: &'static str,
) -> Finding {
    let (verdict, text) = timeout(sink.patience, looking)
        .await
        .unwrap_or_else(|_| (Health::Bad, errors::silent(sink.patience).text));
    finding(point, verdict, text)
}

async fn exchange(sink: &Rabbitmq, connection: &Connection) -> (Health, String) {
    let name = &sink.config.exchange;
    let thing = Thing::Exchange(name);
    if let Err(error) = topology::declare_exchange(connection, name, true).await {
        return not_there(sink, &error, thing);
    }
    // What is there is not changed by declaring it once more, and only that tells how it is.
    let declared = match sink.config.declare {
        Declare::Active => topology::declare_exchange(connection, name, false).await,
        Declare::Passive | Declare::None => Ok(()),
    };
    match declared {
        Ok(()) => (Health::Good, format!("{name:?} is there")),
        Err(error) => (Health::Bad, explain(sink, &error, thing)),
    }
}

async fn queue(sink: &Rabbitmq, connection: &Connection) -> (Health, String) {
    let Some(name) = &sink.config.queue else {
        let text = "none is configured: an event for which no consumer has bound one is tried again \
                    until there is one";
        return (Health::Doubtful, text.into());
    };
    let thing = Thing::Queue(name);
    let queue = match topology::declare_queue(connection, name, true).await {
        Ok(queue) => queue,
        Err(error) => return not_there(sink, &error, thing),
    };
    let declared = match sink.config.declare {
        Declare::Active => topology::declare_queue(connection, name, false).await.map(drop),
        Declare::Passive | Declare::None => Ok(()),
    };
    if let Err(error) = declared {
        return (Health::Bad, explain(sink, &error, thing));
    }
    let (events, consumers) = (queue.message_count(), queue.consumer_count());
    let text = format!("{name:?} is there: {events} waiting, {consumers} consumers");
    (Health::Good, text)
}

/// A passive declaration that failed.
fn not_there(sink: &Rabbitmq, error: &Error, thing: Thing) -> (Health, String) {
    let is_missing = topology::code(error) == Some(404);
    let text = explain(sink, error, thing);
    match (sink.config.declare, thing) {
        (Declare::Active, _) if is_missing => {
            (Health::Doubtful, "missing: the bridge creates it at its start".into())
        }
        (Declare::None, Thing::Queue(_)) if is_missing => (Health::Doubtful, text),
        _ => (Health::Bad, text),
    }
}

fn explain(sink: &Rabbitmq, error: &Error, thing: Thing) -> String {
    topology::explain(error, thing, &sink.address.uri.vhost).text
}

fn finding(point: &'static str, verdict: Health, text: String) -> Finding {
    Finding { point, verdict, text }
}
