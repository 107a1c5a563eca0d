//! The state of the sink: what `/readyz` and the metrics show, how long it has been so, and what was last
//! logged about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::outbox::Refused;
use crate::time::{Clock, Timestamp};
use crate::verdict::{Kind, Reason};

/// How often the log repeats that the sink accepts nothing.
const REMINDER: Duration = Duration::from_secs(600);

/// How often the log says how many events have become dead letters.
const DEAD_REMINDER: Duration = Duration::from_secs(60);

/// Whether the sink accepts events, and if not, why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SinkState {
    /// Not asked yet.
    Unknown,
    Up,
    Away(String, Kind),
}

/// The events that the sink has refused for good since it last took one: a setting of the broker may refuse them all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusals {
    pub(crate) count: u64,
    /// Of the last one.
    pub(crate) reason: String,
}

pub(super) struct Standing {
    state: watch::Sender<SinkState>,
    refusals: watch::Sender<Option<Refusals>>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Consecutive rounds in which the sink accepted nothing.
    pub(super) failures: u32,
    /// When the sink last answered, on the steady clock.
    answered_at: Option<Timestamp>,
    /// What was last logged, and when.
    said: Option<(Kind, Instant)>,
    /// When dead letters were last logged, how many have come since, and the last of them.
    dead_said_at: Option<Instant>,
    dead_unsaid: usize,
    last_dead: Option<Refused>,
}

impl Standing {
    pub(super) fn new(metrics: Arc<Metrics>, clock: Clock, is_up: bool) -> Self {
        metrics.sink_up.set(i64::from(is_up));
        let state = watch::Sender::new(if is_up { SinkState::Up } else { SinkState::Unknown });
        Standing {
            state,
            refusals: watch::Sender::new(None),
            metrics,
            clock,
            failures: 0,
            answered_at: None,
            said: None,
            dead_said_at: None,
            dead_unsaid: 0,
            last_dead: None,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
    }

    pub(super) fn refusals(&self) -> watch::Receiver<Option<Refusals>> {
        self.refusals.subscribe()
    }

    /// The sink took an event, or refused it for good.
    pub(super) fn judged(&self, refused: Option<&Reason>) {
        let Some(reason) = refused else {
            if self.refusals.borrow().is_some() {
                self.refusals.send_replace(None);
            }
            return;
        };
        self.refusals.send_modify(|refusals| {
            let count = refusals.as_ref().map_or(0, |refusals| refusals.count) + 1;
            *refusals = Some(Refusals { count, reason: reason.text.clone() });
        });
    }

    /// These are dead letters now: logs the first one, and then now and then how many there are.
    pub(super) fn died(&mut self, dead: &[Refused]) {
        self.dead_unsaid += dead.len();
        self.last_dead = dead.last().cloned().or(self.last_dead.take());
        self.say_dead();
    }

    /// Logs what has not been logged yet, if it is time.
    pub(super) fn say_dead(&mut self) {
        let is_time = self.dead_said_at.is_none_or(|at| at.elapsed() >= DEAD_REMINDER);
        if let Some(Refused { position, reason, .. }) = self.last_dead.take_if(|_| is_time) {
            let events = std::mem::take(&mut self.dead_unsaid);
            self.dead_said_at = Some(Instant::now());
            tracing::error!(
                events,
                last_position = position,
                reason,
                "refused for good, and kept as dead letters: `topic-bridge outbox list --dead` shows them, and \
                 once the cause is mended `topic-bridge outbox retry` delivers them"
            );
        }
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
