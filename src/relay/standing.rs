//! The state of the sink: what `/readyz` and the metrics show, how long it has been so, and what was last
//! logged about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::time::{Clock, Timestamp};
use crate::verdict::{Kind, Reason};

/// How often the log repeats that the sink accepts nothing.
const REMINDER: Duration = Duration::from_secs(600);

/// Whether the sink accepts events, and if not, why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SinkState {
    /// Not asked yet.
    Unknown,
    Up,
    Away(String, Kind),
}

pub(super) struct Standing {
    state: watch::Sender<SinkState>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Consecutive rounds in which the sink accepted nothing.
    pub(super) failures: u32,
    /// When the sink last answered, on the steady clock.
    answered_at: Option<Timestamp>,
    /// What was last logged, and when.
    said: Option<(Kind, Instant)>,
}

impl Standing {
    pub(super) fn new(metrics: Arc<Metrics>, clock: Clock, is_up: bool) -> Self {
        metrics.sink_up.set(i64::from(is_up));
        let state = watch::Sender::new(if is_up { SinkState::Up } else { SinkState::Unknown });
        Standing { state, metrics, clock, failures: 0, answered_at: None, said: None }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
    }

    pub(super) fn is_up(&self) -> bool {
        *self.state.borrow() == SinkState::Up
    }

    /// Why the sink is not up, if known.
    pub(super) fn kind(&self) -> Option<Kind> {
        match &*self.state.borrow() {
            SinkState::Away(_, kind) => Some(*kind),
            _ => None,
        }
    }

    pub(super) fn has_answered_within(&self, time: Duration) -> bool {
        let now = self.clock.steady();
        self.answered_at.is_some_and(|at| now.since(at) < time)
    }

    /// The sink answered, and its state has not changed.
    pub(super) fn note_answer(&mut self) {
        self.answered_at = Some(self.clock.steady());
    }

    pub(super) fn up(&mut self, waiting: u64) {
        self.answered_at = Some(self.clock.steady());
        let attempts = std::mem::take(&mut self.failures);
        if self.is_up() {
            return;
        }
        if self.kind().is_some() {
            tracing::info!(attempts, waiting, "the sink takes events again");
        }
        self.metrics.sink_up.set(1);
        self.state.send_replace(SinkState::Up);
    }

    /// A round in which the sink accepted nothing.
    pub(super) fn fail(&mut self, reason: Reason, waiting: u64) {
        self.failures = self.failures.saturating_add(1);
        self.down(reason, waiting);
    }

    pub(super) fn down(&mut self, reason: Reason, waiting: u64) {
        self.answered_at = Some(self.clock.steady());
        let is_news =
            self.said.is_none_or(|(kind, at)| kind != reason.kind || at.elapsed() >= REMINDER);
        if is_news {
            self.said = Some((reason.kind, Instant::now()));
            tracing::warn!(
                kind = reason.kind.name(),
                reason = reason.text,
                waiting,
                "the sink takes no events: callbacks are still taken and kept, delivery goes on by \
                 itself when the sink is back"
            );
        }
        self.metrics.sink_up.set(0);
        self.state.send_replace(SinkState::Away(reason.text, reason.kind));
    }
}
