//! The RabbitMQ sink: publishes to a durable topic exchange over one connection and one channel with
//! publisher confirms, a whole batch in flight at once. A connection that failed in any way, or left a
//! confirm open, is thrown away; the next call builds a new one. lapin's own recovery stays off: it
//! gives up for good after a while, and says nothing meanwhile.

mod batch;
mod connection;
mod errors;
mod examine;
mod message;
mod tail;
#[cfg(test)]
mod tests;
mod topology;

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio::time::timeout;

use super::{Reason, Verdict};
use crate::config::{self, Config};
use crate::event::Encoding;
use crate::outbox::Stored;
use connection::{Address, Link};
use message::Message;

pub(super) use examine::examine;
pub(super) use tail::tail;

/// While events come back unroutable, how often exchange and queue are declared again.
const DECLARE_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Rabbitmq {
    config: config::Rabbitmq,
    address: Address,
    encoding: Encoding,
    /// For connecting, for declaring, and for confirming a batch: for each as long.
    patience: Duration,
    /// Taken while it is in use, so that a call that is dropped midway takes it along: nobody knows
    /// what is still on its way then.
    link: Option<Link>,
    /// Something could not be routed: exchange, queue or binding may be gone.
    is_topology_doubted: bool,
    declared_at: Instant,
}

impl Rabbitmq {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let event_type = &config.naming.event_type;
        ensure!(
            event_type.len() <= message::SHORT,
            "event.type: is {} bytes long, RabbitMQ takes at most {}",
            event_type.len(),
            message::SHORT
        );
        let Ok(address) = Address::new(&config.rabbitmq) else {
            bail!(
                "rabbitmq.url: user, password, virtual host or a parameter in it is not readable"
            );
        };
        Ok(Rabbitmq {
            config: config.rabbitmq.clone(),
            address,
            encoding: config.encoding,
            patience: config.relay.confirm_timeout,
            link: None,
            is_topology_doubted: false,
            declared_at: Instant::now(),
        })
    }

    pub(super) async fn ready(&mut self) -> Result<(), Reason> {
        let mut link = self.link().await?;
        if let Some(blocked) = link.alarm.check() {
            self.link = Some(link);
            return Err(blocked);
        }
        // Exchange and queue may have been deleted since.
        self.link = Some(self.declared(link).await?);
        Ok(())
    }

    pub(super) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        match self.try_deliver(events).await {
            Ok(verdicts) => verdicts,
            Err(reason) => vec![Verdict::Away(reason); events.len()],
        }
    }

    pub(super) async fn close(self) {
        if let Some(link) = self.link {
            link.close().await;
        }
    }

    async fn try_deliver(&mut self, events: &[Stored]) -> Result<Vec<Verdict>, Reason> {
        let mut link = self.link().await?;
        if let Some(blocked) = link.alarm.check() {
            self.link = Some(link);
            return Err(blocked);
        }
        if self.is_topology_doubted && self.declared_at.elapsed() >= DECLARE_EVERY {
            self.declared_at = Instant::now();
            link = self.declared(link).await?;
        }
        let (routing_key, frame_max) = (&self.config.routing_key, link.frame_max());
        let mut messages = Vec::with_capacity(events.len());
        let mut unfit = Vec::new();
        for (index, stored) in events.iter().enumerate() {
            match Message::new(stored, self.encoding, routing_key, frame_max) {
                Ok(message) => messages.push(message),
                Err(reason) => unfit.push((index, Verdict::Refused(reason))),
            }
        }

        let published = link.publish(&self.config.exchange, messages, self.patience).await;
        let mut verdicts = published.judge(&self.config.exchange);
        self.is_topology_doubted =
            verdicts.iter().any(|verdict| matches!(verdict, Verdict::Later(_)));
        if published.is_whole() {
            self.link = Some(link);
        } else if link.alarm.check().is_some() {
            // A blocked connection is told when the alarm is over; a new one would not even know of
            // it. But the open confirms belong to the channel.
            link.channel = None;
            self.link = Some(link);
        } else if published.has_answers() {
            link.close().await;
        }
        for (index, verdict) in unfit {
            verdicts.insert(index, verdict);
        }
        Ok(verdicts)
    }

    /// The connection there is if it is sound, else a new one with the topology declared.
    async fn link(&mut self) -> Result<Link, Reason> {
        let mut link = match self.link.take().filter(Link::is_sound) {
            Some(link) => link,
            None => {
                let link = Link::connect(&self.config, &self.address, self.patience).await?;
                self.declared(link).await?
            }
        };
        if link.channel.is_none() && link.alarm.check().is_none() {
            let opened = timeout(self.patience, link.open_channel()).await;
            opened.map_err(|_| errors::silent(self.patience))??;
        }
        Ok(link)
    }

    /// Gives the link back if exchange and queue are as they should be.
    async fn declared(&self, link: Link) -> Result<Link, Reason> {
        let declaring = topology::declare(&link.connection, &self.config, &self.address.uri.vhost);
        match timeout(self.patience, declaring).await {
            Ok(Ok(())) => Ok(link),
            Ok(Err(reason)) => {
                link.close().await;
                Err(reason)
            }
            Err(_) => Err(errors::silent(self.patience)),
        }
    }
}
