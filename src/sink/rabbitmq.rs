//! The RabbitMQ sink: publishes to a durable topic exchange over one connection and one channel with
//! publisher confirms, a whole batch in flight at once. A connection that failed in any way, or left a
//! confirm open, is discarded; the next call builds a new one. lapin's own recovery stays off: it gives
//! up permanently after a while, and reports nothing until then.

mod batch;
mod config;
mod connection;
mod errors;
mod message;
mod tail;
#[cfg(test)]
mod tests;
mod topology;

use std::time::Duration;

use anyhow::{bail, ensure};
use tokio::time::timeout;

use super::Terms;
use super::outgoing::Outgoing;
use super::sends::Destination;
use super::session::{Broker, Failed, Session, Steps};
use crate::message::Envelope;
use crate::verdict::{Kind, Reason, Verdict};
use connection::{Address, Link};
use message::Message;

pub(super) use config::Config;
pub(super) use tail::tail;

#[derive(Clone)]
pub(crate) struct Rabbitmq {
    config: Config,
    address: Address,
    /// The time limit for connecting, for declaring, and for confirming a batch, each.
    patience: Duration,
}

impl Rabbitmq {
    pub(super) fn new(config: &Config, terms: &Terms) -> anyhow::Result<Self> {
        let event_type = &terms.event.event_type;
        ensure!(
            event_type.len() <= message::SHORT,
            "event.type: is {} bytes long, RabbitMQ takes at most {}",
            event_type.len(),
            message::SHORT
        );
        let Ok(address) = Address::new(config) else {
            bail!(
                "rabbitmq.url: user, password, virtual host or a parameter in it is not readable"
            );
        };
        Ok(Rabbitmq { config: config.clone(), address, patience: terms.patience })
    }

    fn vhost(&self) -> &str {
        &self.address.uri.vhost
    }
}

impl Broker for Rabbitmq {
    type Session = Link;

    fn addresses(&self) -> Vec<String> {
        let url = &self.config.url;
        let usual = if url.scheme() == "amqps" { 5671 } else { 5672 };
        let host = url.host_str().unwrap_or_default();
        vec![format!("{host}:{}", url.port().unwrap_or(usual))]
    }

    /// As the conventions write an exchange with a routing key.
    fn destination(&self, event: &Envelope) -> Destination {
        let Config { exchange, routing_key, .. } = &self.config;
        Destination {
            system: "rabbitmq",
            operation: "publish",
            name: format!("{exchange}:{}", routing_key.render(event)),
            template: routing_key.text().map(|text| format!("{exchange}:{text}")),
            server: self.addresses().into_iter().next(),
        }
    }

    async fn open(&self, steps: &mut Steps) -> Result<Link, Failed> {
        let prepared = connection::prepare(self).map_err(|reason| reason.at("credentials"))?;
        let answers = format!("RabbitMQ answers at {}", self.address.shown());
        let link = match Link::connect(self, prepared).await {
            Ok(link) => link,
            Err(reason) => {
                let point = match reason.kind {
                    Kind::Credentials => "credentials",
                    Kind::Topology => "virtual host",
                    _ => return Err(reason.at("connection")),
                };
                steps.good("connection", answers);
                return Err(reason.at(point));
            }
        };
        steps.good("connection", answers);
        let status = link.connection.status();
        steps.good("credentials", format!("it accepts the user {:?}", status.username()));
        let vhost = status.vhost();
        steps.good("virtual host", format!("{:?} is open to that user", vhost.as_str()));
        Ok(link)
    }
}

impl Session for Link {
    /// Checks the exchange and the queue, and opens a channel for publishing.
    async fn check(&mut self, steps: &mut Steps) -> Result<(), Failed> {
        if let Some(blocked) = self.alarm.check() {
            return Err(blocked.at("connection"));
        }
        topology::check(self, steps).await?;
        self.open_channel().await.map_err(|reason| reason.at("connection"))
    }

    async fn publish(&mut self, messages: Vec<Outgoing<'_>>) -> Vec<Verdict> {
        if let Err(reason) = self.open_channel().await {
            self.is_doubted = reason.kind != Kind::Blocked;
            return vec![Verdict::Away(reason); messages.len()];
        }
        let mut fit = Vec::with_capacity(messages.len());
        let mut unfit = Vec::new();
        for (index, outgoing) in messages.into_iter().enumerate() {
            match Message::new(outgoing, &self.rabbitmq.config.routing_key, self.frame_max()) {
                Ok(message) => fit.push(message),
                Err(reason) => unfit.push((index, Verdict::Refused(reason))),
            }
        }
        let published = self.send(fit).await;
        let mut verdicts = published.judge(&self.rabbitmq.config.exchange);
        if !published.is_whole() {
            // The open confirms belong to the channel. A blocked connection is notified when the alarm is
            // over; a new one would not even learn about it.
            self.channel = None;
            self.is_doubted = self.alarm.check().is_none();
            if self.is_doubted && published.has_answers() {
                self.say_goodbye().await;
            }
        }
        for (index, verdict) in unfit {
            verdicts.insert(index, verdict);
        }
        verdicts
    }

    fn is_sound(&self) -> bool {
        let has_channel = self.channel.as_ref().is_none_or(|channel| channel.status().connected());
        !self.is_doubted && self.connection.status().connected() && has_channel
    }

    async fn close(self) {
        self.say_goodbye().await;
    }
}

impl Link {
    /// Opens the channel if there is none, unless the connection is blocked.
    async fn open_channel(&mut self) -> Result<(), Reason> {
        if let Some(blocked) = self.alarm.check() {
            return Err(blocked);
        }
        if self.channel.is_some() {
            return Ok(());
        }
        let patience = self.rabbitmq.patience;
        let opened = timeout(patience, connection::open_channel(&self.connection)).await;
        self.channel = Some(opened.map_err(|_| errors::silent(patience))??);
        Ok(())
    }
}
