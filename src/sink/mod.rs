//! The boundary between the relay and the destinations. A sink is given a batch in order and returns a
//! [`Verdict`] for each event, in the same order. "No error" is not a verdict: *delivered* means that the
//! other side has confirmed it. Only a sink knows its client library and that library's errors.
//!
//! A sink connects when it is first used, and again after losing its connection. The relay decides when
//! to try, so nothing here retries or waits between attempts. Every wait has a deadline,
//! `relay.confirm_timeout`, after which the sink counts as away.
//!
//! A new sink is a folder next to this file, a [`Broker`] with its session, and one line in each match below.

mod access;
mod embedded;
mod http_port;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
mod outgoing;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(test)]
pub(crate) mod scripted;
mod sends;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::config::value::choice;
use crate::config::{Faults, Keys, Value};
use crate::event;
use crate::message::Encoding;
use crate::outbox::Stored;
use crate::spans::Spans;
use crate::verdict::{Reason, Verdict};
use outgoing::Outgoing;
use session::{Broker, Delivery};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum SinkKind {
    Embedded,
    Kafka,
    Rabbitmq,
    Nats,
}

const SINKS: [(&str, SinkKind); 4] = [
    ("embedded", SinkKind::Embedded),
    ("kafka", SinkKind::Kafka),
    ("rabbitmq", SinkKind::Rabbitmq),
    ("nats", SinkKind::Nats),
];

impl SinkKind {
    pub(crate) fn name(self) -> &'static str {
        SINKS.iter().find(|(_, kind)| *kind == self).expect("SINKS names each").0
    }

    /// Whether the outbox itself is the stream.
    pub(crate) fn is_embedded(self) -> bool {
        self == SinkKind::Embedded
    }

    fn is_in_this_build(self) -> bool {
        match self {
            SinkKind::Embedded => true,
            SinkKind::Kafka => cfg!(feature = "kafka"),
            SinkKind::Rabbitmq => cfg!(feature = "rabbitmq"),
            SinkKind::Nats => cfg!(feature = "nats"),
        }
    }

    pub(crate) fn read(value: &Value) -> Result<Self, String> {
        let kind = choice(value, &SINKS)?;
        if kind.is_in_this_build() {
            return Ok(kind);
        }
        let name = kind.name();
        Err(format!(
            "{name:?} is not in this build: build with --features {name}, or take the full one"
        ))
    }
}

/// `sink`, and the section of each broker in this build. All are checked whichever is in use, so that a typo
/// shows before the day the sink is changed.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) kind: SinkKind,
    #[cfg(feature = "kafka")]
    kafka: kafka::Config,
    #[cfg(feature = "rabbitmq")]
    rabbitmq: rabbitmq::Config,
    #[cfg(feature = "nats")]
    nats: nats::Config,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        for kind in [SinkKind::Kafka, SinkKind::Rabbitmq, SinkKind::Nats] {
            if !kind.is_in_this_build() {
                keys.skip(kind.name());
            }
        }
        Config {
            kind: keys.read("sink", SinkKind::read),
            #[cfg(feature = "kafka")]
            kafka: kafka::Config::read(keys),
            #[cfg(feature = "rabbitmq")]
            rabbitmq: rabbitmq::Config::read(keys),
            #[cfg(feature = "nats")]
            nats: nats::Config::read(keys),
        }
    }
}

/// What a sink needs from the other sections.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) event: event::Config,
    /// `relay.confirm_timeout`: the longest wait for a broker.
    pub(crate) patience: Duration,
    /// `relay.batch`.
    pub(crate) batch: usize,
    pub(crate) max_body_bytes: u64,
    pub(crate) outbox: PathBuf,
}

/// One point of `check --connect`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    /// What was checked: "connection", "credentials", "topic", "clock", …
    pub(crate) point: &'static str,
    pub(crate) verdict: Health,
    /// What was found and, if it is not good, how to fix it.
    pub(crate) text: String,
}

/// How good a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Health {
    Good,
    /// Events are delivered nevertheless, or this cannot be known from here.
    Doubtful,
    /// Nothing can be delivered in this state.
    Bad,
}

/// Where events go.
pub(crate) struct Sink {
    way: Way,
    encoding: Encoding,
    spans: Spans,
}

enum Way {
    Embedded,
    #[cfg(feature = "kafka")]
    Kafka(Box<Delivery<kafka::Kafka>>),
    #[cfg(feature = "nats")]
    Nats(Box<Delivery<nats::Nats>>),
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(Box<Delivery<rabbitmq::Rabbitmq>>),
    #[cfg(test)]
    Scripted(scripted::Scripted),
}

/// The version of the librdkafka that is built in, if one is.
pub(crate) fn librdkafka_version() -> Option<String> {
    #[cfg(feature = "kafka")]
    return Some(kafka::library_version());
    #[cfg(not(feature = "kafka"))]
    None
}

impl Sink {
    /// Does not connect yet. An error is a configuration fault that only the client library can detect.
    pub(crate) fn new(config: &Config, terms: &Terms, spans: Spans) -> Result<Self, Faults> {
        let way = match config.kind {
            SinkKind::Embedded => Ok(Way::Embedded),
            #[cfg(feature = "kafka")]
            SinkKind::Kafka => kafka::delivery(&config.kafka, terms).map(|d| Way::Kafka(d.into())),
            #[cfg(feature = "nats")]
            SinkKind::Nats => {
                let nats = nats::Nats::new(&config.nats, terms);
                Ok(Way::Nats(Delivery::new(nats, None).into()))
            }
            #[cfg(feature = "rabbitmq")]
            SinkKind::Rabbitmq => rabbitmq::Rabbitmq::new(&config.rabbitmq, terms)
                .map(|rabbitmq| Way::Rabbitmq(Delivery::new(rabbitmq, None).into())),
            #[allow(unreachable_patterns)] // in a build that has them all
            other => unreachable!("{} is refused where it is not built in", other.name()),
        };
        let way = way.map_err(|error: anyhow::Error| Faults::one(format!("{error:#}")))?;
        Ok(Sink { way, encoding: terms.event.encoding, spans })
    }

    #[cfg(test)]
    pub(crate) fn scripted(script: scripted::Scripted) -> Self {
        Sink { way: Way::Scripted(script), encoding: Encoding::Structured, spans: Spans::off() }
    }

    #[cfg(all(test, feature = "kafka"))]
    fn kafka(&self) -> &Delivery<kafka::Kafka> {
        let Way::Kafka(delivery) = &self.way else { panic!("it is another one") };
        delivery
    }

    /// Whether there is no broker that could be away.
    pub(crate) fn needs_nobody(&self) -> bool {
        matches!(self.way, Way::Embedded)
    }

    /// Whether events can be delivered now. Connects if there is no connection, and creates or checks
    /// what is configured.
    pub(crate) async fn ready(&mut self) -> Result<(), Reason> {
        match &mut self.way {
            Way::Embedded => Ok(()),
            #[cfg(feature = "kafka")]
            Way::Kafka(delivery) => delivery.ready().await,
            #[cfg(feature = "nats")]
            Way::Nats(delivery) => delivery.ready().await,
            #[cfg(feature = "rabbitmq")]
            Way::Rabbitmq(delivery) => delivery.ready().await,
            #[cfg(test)]
            Way::Scripted(scripted) => scripted.ready(),
        }
    }

    /// The best number of events to hand over at once, given `relay.batch` as `configured`.
    pub(crate) fn batch(&self, configured: usize) -> usize {
        match self.way {
            #[cfg(feature = "kafka")]
            Way::Kafka(_) => kafka::Kafka::BATCHES * configured,
            #[cfg(feature = "nats")]
            Way::Nats(_) => nats::Nats::BATCHES * configured,
            _ => configured,
        }
    }

    /// Delivers a batch: one verdict for each event. May be dropped midway: what was confirmed by then is
    /// unknown, and is delivered again.
    pub(crate) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        match &mut self.way {
            Way::Embedded => vec![Verdict::Delivered; events.len()],
            #[cfg(feature = "kafka")]
            Way::Kafka(delivery) => {
                delivery.deliver(Outgoing::all(events, self.encoding), &self.spans).await
            }
            #[cfg(feature = "nats")]
            Way::Nats(delivery) => {
                delivery.deliver(Outgoing::all(events, self.encoding), &self.spans).await
            }
            #[cfg(feature = "rabbitmq")]
            Way::Rabbitmq(delivery) => {
                delivery.deliver(Outgoing::all(events, self.encoding), &self.spans).await
            }
            #[cfg(test)]
            Way::Scripted(scripted) => scripted.deliver(events),
        }
    }

    /// Closes the connection to the broker properly, in a second or two at most.
    pub(crate) async fn close(self) {
        match self.way {
            Way::Embedded => {}
            #[cfg(feature = "kafka")]
            Way::Kafka(delivery) => delivery.close().await,
            #[cfg(feature = "nats")]
            Way::Nats(delivery) => delivery.close().await,
            #[cfg(feature = "rabbitmq")]
            Way::Rabbitmq(delivery) => delivery.close().await,
            #[cfg(test)]
            Way::Scripted(_) => {}
        }
    }

    /// Checks the sink point by point without changing anything.
    pub(crate) async fn examine(config: &Config, terms: &Terms) -> anyhow::Result<Vec<Finding>> {
        let _ = terms; // unused in a build without brokers
        Ok(match config.kind {
            SinkKind::Embedded => {
                let text = "no broker: the outbox's own history is the stream".into();
                vec![Finding { point: "sink", verdict: Health::Good, text }]
            }
            #[cfg(feature = "kafka")]
            SinkKind::Kafka => session::examine(&kafka::Kafka::new(&config.kafka, terms)).await,
            #[cfg(feature = "nats")]
            SinkKind::Nats => session::examine(&nats::Nats::new(&config.nats, terms)).await,
            #[cfg(feature = "rabbitmq")]
            SinkKind::Rabbitmq => {
                session::examine(&rabbitmq::Rabbitmq::new(&config.rabbitmq, terms)?).await
            }
            #[allow(unreachable_patterns)] // in a build that has them all
            other => unreachable!("{} is refused where it is not built in", other.name()),
        })
    }
}

/// Subscribes to the configured sink as a reader that does not take events from others, and sends each
/// event as one line of JSON, the whole CloudEvent whatever `event.encoding` is. Ends when `lines` is
/// closed, or with an error.
pub(crate) async fn tail(
    config: &Config,
    terms: &Terms,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    match config.kind {
        SinkKind::Embedded => embedded::tail(&terms.outbox, from_start, lines).await,
        #[cfg(feature = "kafka")]
        SinkKind::Kafka => kafka::tail(&config.kafka, terms, from_start, lines).await,
        #[cfg(feature = "nats")]
        SinkKind::Nats => nats::tail(&config.nats, terms, from_start, lines).await,
        #[cfg(feature = "rabbitmq")]
        SinkKind::Rabbitmq if from_start => {
            tracing::warn!(
                outbox = %terms.outbox.display(),
                "RabbitMQ shows what waits in a queue only by taking it, which changes its order for the \
                 consumers: these are the events in the bridge's own outbox, delivered or not"
            );
            let shown = embedded::tail(&terms.outbox, true, lines).await;
            shown.context("where the outbox is not at hand, GET /events?from=start on admin.listen shows them")
        }
        #[cfg(feature = "rabbitmq")]
        SinkKind::Rabbitmq => rabbitmq::tail(&config.rabbitmq, terms, lines).await,
        #[allow(unreachable_patterns)] // in a build that has them all
        other => unreachable!("{} is refused where it is not built in", other.name()),
    }
}

/// Logs that `tail` misses nothing from here on, so that the user knows before the first line.
fn subscribed(from_start: bool) {
    let since = if from_start { "the oldest event" } else { "now" };
    tracing::info!(since, "reading");
}
