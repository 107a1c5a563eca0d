//! The sink that delivers to a Kafka topic, through librdkafka's idempotent producer. A batch is handed
//! over as a whole and then awaited as a whole; an event counts as delivered when all in-sync replicas
//! have confirmed it. Nothing is left in flight when a batch ends, and no topic is created by accident.

mod client;
mod config;
mod errors;
mod message;
mod session;
mod tail;
#[cfg(test)]
mod tests;
mod topic;

use std::time::Duration;

use anyhow::Context as _;

use super::Terms;
use super::sends::Destination;
use super::session::{Broker, Delivery, Failed, Steps};
use crate::message::Envelope;
use crate::verdict::{Kind, Reason};
use client::{Clients, Context};
pub(super) use config::Config;
use config::Key;
use session::Producing;
pub(super) use tail::tail;
use topic::Topic;

/// librdkafka's own.
pub(super) fn library_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}

#[derive(Clone)]
pub(crate) struct Kafka {
    clients: Clients,
    topic: Topic,
    key: Key,
    patience: Duration,
    max_body_bytes: u64,
}

impl Kafka {
    pub(super) fn new(config: &Config, terms: &Terms) -> Self {
        Kafka {
            clients: Clients::new(config, terms),
            topic: Topic::new(config),
            key: config.key,
            patience: terms.patience,
            max_body_bytes: terms.max_body_bytes,
        }
    }

    fn producing(&self) -> anyhow::Result<Producing> {
        let context = Context::default();
        let producer = self.clients.producer(context.clone())?;
        Ok(Producing::new(self.clone(), producer, context))
    }
}

/// Builds the first producer at once, because only librdkafka knows which properties it accepts.
pub(super) fn delivery(config: &Config, terms: &Terms) -> anyhow::Result<Delivery<Kafka>> {
    let kafka = Kafka::new(config, terms);
    kafka.clients.check().context("[kafka.properties]")?;
    let first = kafka.producing().context("[kafka]")?;
    Ok(Delivery::new(kafka, Some(first)))
}

impl Broker for Kafka {
    type Session = Producing;

    const BATCHES: usize = 4;

    fn addresses(&self) -> Vec<String> {
        self.topic.brokers.split(',').map(|broker| broker.trim().to_owned()).collect()
    }

    fn destination(&self, _event: &Envelope) -> Destination {
        Destination {
            system: "kafka",
            operation: "send",
            name: self.topic.name.clone(),
            template: None,
            server: self.addresses().into_iter().next(),
        }
    }

    /// Does not connect yet: librdkafka does so when it is asked for the topic.
    async fn open(&self, _steps: &mut Steps) -> Result<Producing, Failed> {
        self.producing().map_err(|error| {
            let text = format!("cannot build the Kafka client: {error:#}");
            Reason::new(Kind::Other, text).at("configuration")
        })
    }
}
