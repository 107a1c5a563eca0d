//! The seam between the relay and where events go. A sink is given a batch in order and returns a
//! [`Verdict`] for each event, in the same order. "No error" is not a verdict: *delivered* means that
//! the other side has confirmed it. Only a sink knows its client library and that library's errors.
//!
//! A new sink is one file beside this one and one line in each match below.

mod embedded;
#[cfg(test)]
pub(crate) mod scripted;

use crate::config::SinkKind;
use crate::outbox::Stored;

/// What became of one event.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(not(test), expect(dead_code, reason = "the embedded sink has nothing to refuse"))]
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

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reason {
    /// The label of `publish_errors_total`: one of a few that the sink's file lists.
    pub(crate) kind: &'static str,
    /// For the operator.
    pub(crate) text: String,
}

pub(crate) enum Sink {
    Embedded,
    #[cfg(test)]
    Scripted(scripted::Scripted),
}

impl Sink {
    pub(crate) fn new(kind: SinkKind) -> Self {
        match kind {
            SinkKind::Embedded => Sink::Embedded,
        }
    }

    /// Settles a batch: one verdict for each event.
    pub(crate) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        match self {
            Sink::Embedded => embedded::deliver(events),
            #[cfg(test)]
            Sink::Scripted(scripted) => scripted.deliver(events),
        }
    }
}
