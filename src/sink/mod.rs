//! The seam between the relay and where events go. A sink is given a batch in order and returns a
//! [`Verdict`] for each event, in the same order. "No error" is not a verdict: *delivered* means that
//! the other side has confirmed it. Only a sink knows its client library and that library's errors.
//!
//! A sink connects when it is first asked, and again after it has lost its connection; the relay
//! decides when to ask, so nothing here retries or waits between attempts. Every wait has a deadline,
//! `relay.confirm_timeout`, after which the sink counts as away.
//!
//! A new sink is one file beside this one and one line in each match below.

mod embedded;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(test)]
pub(crate) mod scripted;

use tokio::sync::mpsc;

use crate::config::{Config, Faults, SinkKind};
use crate::outbox::Stored;

/// How many times `relay.batch` a sink gets at once that does well with more.
#[cfg(any(feature = "kafka", feature = "nats"))]
const BATCHES: usize = 4;

/// What became of one event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Confirmed.
    Delivered,
    /// Not now, for a reason of this event's own: it is tried again by itself, the line moves on.
    Later(Reason),
    /// Never: it becomes a dead letter.
    Refused(Reason),
    /// The sink takes nothing now. The event keeps its place in the line.
    Away(Reason),
}

/// Why an event, or a sink, is not where it should be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reason {
    pub(crate) kind: Kind,
    /// For the operator: what happened, its likely cause, and what to do.
    pub(crate) text: String,
}

impl Reason {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Reason { kind, text: text.into() }
    }
}

/// The label `kind` of `publish_errors_total`: one set for all sinks, and no other is ever used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is no connection to the broker.
    Unreachable,
    /// Handed over, and not confirmed in time: it may have arrived.
    Timeout,
    /// The broker does not let this user in, or do this.
    Credentials,
    /// Topic, exchange or stream is missing, or is not as the bridge needs it.
    Topology,
    /// The broker takes nothing now: an alarm, or too few replicas.
    Blocked,
    /// The broker took it and gave it back: a limit is reached.
    Rejected,
    /// Nothing is bound where it was sent.
    Unroutable,
    /// Too large for the broker, for good.
    TooLarge,
    /// Not acceptable in itself, for good.
    Invalid,
    Other,
}

impl Kind {
    pub(crate) const ALL: [Kind; 10] = [
        Kind::Unreachable,
        Kind::Timeout,
        Kind::Credentials,
        Kind::Topology,
        Kind::Blocked,
        Kind::Rejected,
        Kind::Unroutable,
        Kind::TooLarge,
        Kind::Invalid,
        Kind::Other,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Unreachable => "unreachable",
            Kind::Timeout => "timeout",
            Kind::Credentials => "credentials",
            Kind::Topology => "topology",
            Kind::Blocked => "blocked",
            Kind::Rejected => "rejected",
            Kind::Unroutable => "unroutable",
            Kind::TooLarge => "too_large",
            Kind::Invalid => "invalid",
            Kind::Other => "other",
        }
    }
}

/// One point of `check --connect`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    /// What was looked at: "connection", "credentials", "topic", "clock", …
    pub(crate) point: &'static str,
    pub(crate) verdict: Health,
    /// What was found and, where it is not good, what mends it.
    pub(crate) text: String,
}

/// How good a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Health {
    Good,
    /// Events are delivered all the same, or it cannot be known from here.
    Doubtful,
    /// Nothing can be delivered like this.
    Bad,
}

pub(crate) enum Sink {
    Embedded,
    #[cfg(feature = "kafka")]
    Kafka(Box<kafka::Kafka>),
    #[cfg(feature = "nats")]
    Nats(Box<nats::Nats>),
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(Box<rabbitmq::Rabbitmq>),
    #[cfg(test)]
    Scripted(scripted::Scripted),
}

impl Sink {
    /// Connects to nothing yet. An error is what only the client library finds wrong in the
    /// configuration.
    pub(crate) fn new(config: &Config) -> Result<Self, Faults> {
        Self::build(config).map_err(|error| Faults::one(format!("{error:#}")))
    }

    #[cfg_attr(
        not(any(feature = "kafka", feature = "nats", feature = "rabbitmq")),
        expect(clippy::unnecessary_wraps, reason = "brokers can fail here")
    )]
    fn build(config: &Config) -> anyhow::Result<Self> {
        Ok(match config.sink {
            SinkKind::Embedded => Sink::Embedded,
            #[cfg(feature = "kafka")]
            SinkKind::Kafka => Sink::Kafka(Box::new(kafka::Kafka::new(config)?)),
            #[cfg(feature = "nats")]
            SinkKind::Nats => Sink::Nats(Box::new(nats::Nats::new(config)?)),
            #[cfg(feature = "rabbitmq")]
            SinkKind::Rabbitmq => Sink::Rabbitmq(Box::new(rabbitmq::Rabbitmq::new(config)?)),
            #[allow(unreachable_patterns)] // in the build that has them all
            other => unreachable!("{} is refused where it is not built in", other.name()),
        })
    }

    /// Whether events can be delivered now: connects where there is no connection, and creates or
    /// checks what the configuration says.
    pub(crate) async fn ready(&mut self) -> Result<(), Reason> {
        match self {
            Sink::Embedded => Ok(()),
            #[cfg(feature = "kafka")]
            Sink::Kafka(kafka) => kafka.ready().await,
            #[cfg(feature = "nats")]
            Sink::Nats(nats) => nats.ready().await,
            #[cfg(feature = "rabbitmq")]
            Sink::Rabbitmq(rabbitmq) => rabbitmq.ready().await,
            #[cfg(test)]
            Sink::Scripted(scripted) => scripted.ready(),
        }
    }

    /// How many events it does best to hand over at once, where `relay.batch` is `configured`. Each batch
    /// is waited for, and larger ones less often: Kafka and NATS were seen to gain by that.
    pub(crate) fn batch(&self, configured: usize) -> usize {
        match self {
            #[cfg(feature = "kafka")]
            Sink::Kafka(_) => BATCHES * configured,
            #[cfg(feature = "nats")]
            Sink::Nats(_) => BATCHES * configured,
            _ => configured,
        }
    }

    /// Settles a batch: one verdict for each event. May be dropped midway: what was confirmed by then
    /// is not known, and is delivered again.
    pub(crate) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        match self {
            Sink::Embedded => embedded::deliver(events),
            #[cfg(feature = "kafka")]
            Sink::Kafka(kafka) => kafka.deliver(events).await,
            #[cfg(feature = "nats")]
            Sink::Nats(nats) => nats.deliver(events).await,
            #[cfg(feature = "rabbitmq")]
            Sink::Rabbitmq(rabbitmq) => rabbitmq.deliver(events).await,
            #[cfg(test)]
            Sink::Scripted(scripted) => scripted.deliver(events),
        }
    }

    /// Says goodbye to the broker, in a second or two at most.
    pub(crate) async fn close(self) {
        match self {
            Sink::Embedded => {}
            #[cfg(feature = "kafka")]
            Sink::Kafka(kafka) => kafka.close().await,
            #[cfg(feature = "nats")]
            Sink::Nats(nats) => nats.close().await,
            #[cfg(feature = "rabbitmq")]
            Sink::Rabbitmq(rabbitmq) => rabbitmq.close().await,
            #[cfg(test)]
            Sink::Scripted(_) => {}
        }
    }
}

/// Looks at the configured sink point by point, and changes nothing there. The points come in an order
/// in which each needs those before it; the first bad one may be the last.
pub(crate) async fn examine(config: &Config) -> Vec<Finding> {
    match config.sink {
        SinkKind::Embedded => embedded::examine(),
        #[cfg(feature = "kafka")]
        SinkKind::Kafka => kafka::examine(config).await,
        #[cfg(feature = "nats")]
        SinkKind::Nats => nats::examine(config).await,
        #[cfg(feature = "rabbitmq")]
        SinkKind::Rabbitmq => rabbitmq::examine(config).await,
        #[allow(unreachable_patterns)] // in the build that has them all
        other => unreachable!("{} is refused where it is not built in", other.name()),
    }
}

/// Subscribes to the configured sink as a reader that takes nothing away from others, and sends each
/// event as one line of JSON, the whole CloudEvent whatever `event.encoding` is. Ends when `lines` is
/// closed, or with an error.
pub(crate) async fn tail(
    config: &Config,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    match config.sink {
        SinkKind::Embedded => embedded::tail(config, from_start, lines).await,
        #[cfg(feature = "kafka")]
        SinkKind::Kafka => kafka::tail(config, from_start, lines).await,
        #[cfg(feature = "nats")]
        SinkKind::Nats => nats::tail(config, from_start, lines).await,
        #[cfg(feature = "rabbitmq")]
        SinkKind::Rabbitmq => rabbitmq::tail(config, from_start, lines).await,
        #[allow(unreachable_patterns)] // in the build that has them all
        other => unreachable!("{} is refused where it is not built in", other.name()),
    }
}

/// Tells whoever waits for the first line of `tail` that nothing is missed from here on.
fn subscribed(from_start: bool) {
    let since = if from_start { "the oldest event" } else { "now" };
    tracing::info!(since, "reading");
}
