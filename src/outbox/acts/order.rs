//! The words of an order, as the command line and the private listener exchange them, and what came of it.

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::time::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Act {
    /// Dead letters go back into the queue, quarantined bodies through the parser.
    Retry,
    Drop,
    /// Delivered events are delivered once more.
    Replay,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Of {
    Dead,
    Quarantined,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Of::Dead => "dead",
            Of::Quarantined => "quarantined",
        }
    }
}

/// What to do an act with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Order {
    /// Not for a replay.
    pub(crate) of: Option<Of>,
    pub(crate) filter: Filter,
    /// Only counts.
    pub(crate) dry_run: bool,
    /// The outbox that is meant, as [`super::super::identity`] tells it; none: whichever it is.
    pub(crate) outbox: Option<String>,
}

/// Which rows; all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Filter {
    /// Accepted (a quarantined body: received) at this time or later.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "moment")]
    pub(crate) since: Option<Timestamp>,
    /// …and before this one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "moment")]
    pub(crate) until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<Uuid>,
    /// Or the number of a quarantined body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) position: Option<u64>,
    /// A topic's id, to the letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) topic: Option<String>,
    /// A part of the reason, whatever its case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let moment = Timestamp::parse_rfc3339(&text);
    moment.map(Some).map_err(|_| {
        serde::de::Error::custom(format!("{text:?} is not a time such as 2026-11-22T18:00:00Z"))
    })
}

/// What came of an order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Rows that the order is about; of an import: its lines.
    pub(crate) matched: u64,
    /// Of these: changed as ordered.
    pub(crate) done: u64,
    /// Not queued, because that event is known already.
    pub(crate) duplicates: u64,
    /// Bodies that are still not understood, and stay in quarantine.
    pub(crate) kept: u64,
    /// Why it ended early. What is counted is done all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stopped: Option<String>,
}

/// The columns that a filter looks at.
#[derive(Debug, Default)]
pub(super) struct Looked<'r> {
    pub(super) position: u64,
    pub(super) at: Timestamp,
    pub(super) id: &'r [u8],
    pub(super) topic: &'r [u8],
    pub(super) reason: &'r [u8],
}

impl Filter {
    pub(super) fn matches(&self, row: &Looked) -> bool {
        let has_reason = |wanted: &String| {
            let found = String::from_utf8_lossy(row.reason).to_lowercase();
            found.contains(&wanted.to_lowercase())
        };
        self.since.is_none_or(|since| row.at >= since)
            && self.until.is_none_or(|until| row.at < until)
            && self.position.is_none_or(|position| row.position == position)
            && self.id.is_none_or(|id| row.id == id.as_bytes())
            && self.topic.as_ref().is_none_or(|topic| row.topic == topic.as_bytes())
            && self.reason.as_ref().is_none_or(has_reason)
    }
}

impl Tally {
    /// Who did what, and how much of it.
    pub(crate) fn log(&self, act: &str, of: Option<Of>, filter: &Filter, by: &str) {
        let filter = serde_json::to_string(filter).expect("texts and numbers always encode");
        let Tally { matched, done, duplicates, kept, stopped } = self;
        let stopped = stopped.as_deref().unwrap_or("no");
        let of = of.map_or("events", Of::name);
        tracing::info!(
            act,
            of,
            filter,
            by,
            matched,
            done,
            duplicates,
            kept,
            stopped,
            "an operator's act on the outbox"
        );
    }
}

impl Act {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Act::Retry => "retry",
            Act::Drop => "drop",
            Act::Replay => "replay",
        }
    }
}

impl Order {
    /// What is wrong with it, if anything is. `is_embedded`: the sink is the outbox's own stream.
    pub(crate) fn fault(&self, act: Act, is_embedded: bool) -> Option<&'static str> {
        let Filter { since, id, position, topic, reason, .. } = &self.filter;
        match (act, self.of) {
            (Act::Drop, None) => {
                Some("say what to drop: the dead letters or the quarantined bodies")
            }
            (_, Some(Of::Quarantined)) if id.is_some() || topic.is_some() => {
                Some("a quarantined body has neither an event's id nor a topic: name its number")
            }
            (Act::Replay, Some(_)) => Some(
                "only delivered events are replayed: dead letters and quarantined bodies are retried",
            ),
            (Act::Replay, _) if reason.is_some() => Some("a delivered event has no reason"),
            (Act::Replay, _) if since.is_none() && id.is_none() && position.is_none() => {
                Some("say since when to replay, or which event")
            }
            (Act::Replay, _) if is_embedded => Some(
                "the sink is \"embedded\", and its stream has these events already: read it again from an \
                 earlier position",
            ),
            (Act::Retry, None | Some(Of::Dead)) if is_embedded => Some(
                "the sink is \"embedded\", whose stream shows an event only where it was accepted: export the \
                 dead letters, or retry them after the sink is a broker",
            ),
            _ => None,
        }
    }
}
