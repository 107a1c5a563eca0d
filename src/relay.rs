//! Outbox → sink → settle. Reads events in order, hands them to the sink, and records the outcome of
//! each. Nothing is delivered without being read back from the outbox, so what runs after a crash is what
//! runs all day.
//!
//! The relay runs on its own thread, together with the broker clients: it reads SQLite as it goes, and
//! the cost of a broker is not taken from the thread that answers.
//!
//! There are two queues, the line (events in order of acceptance) and the deferred events, and they take
//! turns. An event that fails on its own is deferred and retried on its own; the line moves on. While the
//! sink is away the relay waits, longer each time and with jitter, and then tries with one event. A batch
//! in which every event fails alike also counts as an unavailable sink, but the retries then use whole
//! batches, because other events may get through. Once something is delivered again, the deferred events
//! are sent first, in order.
//!
//! Anything other than "delivered in order" is written before the next round begins; otherwise that round
//! would read again what was just settled.

mod config;
mod deferred;
mod handover;
mod line;
#[cfg(test)]
mod model;
mod moment;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;
use crate::outbox::{Again, Outbox, Reader, Refused, Settlement, Slot};
use crate::sink::Sink;
use crate::time::Timestamp;
use crate::verdict::Reason;
pub(crate) use config::Config;
use moment::Moment;
use standing::Standing;
pub(crate) use standing::{Refusals, SinkState};

/// How long to wait for something that should come at once, or before looking again for something that
/// may come.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often to ask an idle sink whether it would accept events: an operator wants to know before the
/// next event does. Also how often one deferred event is tried even though it is not due.
const ASK_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Relay {
    config: Config,
    outbox: Outbox,
    reader: Reader,
    sink: Sink,
    metrics: Arc<Metrics>,
    standing: Standing,
    /// Everything up to here was handed over and need not be read again.
    cursor: u64,
    /// Delivered although an earlier event still waits for the sink: must not be sent again.
    ahead: HashSet<u64>,
    /// Since when every event at the head of the line has failed alike.
    stalled_at: Option<Moment>,
    /// When events further down the line were last tried, and where to continue with that.
    looked_ahead_at: Timestamp,
    look_ahead_after: u64,
    /// When some events were last seen to fail while the sink worked.
    partial_at: Option<Moment>,
    delivered_at: Option<Moment>,
    /// The number of moments noted so far.
    moments: u64,
    /// The deferred events have the next turn.
    is_turn_of_deferred: bool,
    /// The deferred events after this position are sent first, due or not.
    release_after: Option<u64>,
    probed_at: Timestamp,
    /// Only deferred events are being tried, and they still fail.
    gives_back: bool,
}

/// What a round did.
#[derive(Debug, PartialEq)]
enum Round {
    Worked,
    Idle,
    Away,
}

impl Relay {
    pub(crate) fn new(
        config: Config,
        outbox: Outbox,
        reader: Reader,
        sink: Sink,
        metrics: Arc<Metrics>,
    ) -> Self {
        let needs_nobody = sink.needs_nobody();
        let cursor = outbox.settled_through();
        let now = outbox.clock().steady();
        Relay {
            config,
            standing: Standing::new(metrics.clone(), outbox.clock().clone(), needs_nobody),
            outbox,
            reader,
            sink,
            metrics,
            cursor,
            ahead: HashSet::new(),
            stalled_at: None,
            looked_ahead_at: now,
            look_ahead_after: 0,
            partial_at: None,
            delivered_at: None,
            moments: 0,
            is_turn_of_deferred: true,
            release_after: None,
            probed_at: now,
            gives_back: false,
        }
    }

    pub(crate) fn state(&self) -> watch::Receiver<SinkState> {
        self.standing.subscribe()
    }

    pub(crate) fn refusals(&self) -> watch::Receiver<Option<Refusals>> {
        self.standing.refusals()
    }

    /// Delivers until `stop` is set, and then until nothing is left or `relay.drain_timeout` has passed; not at all
    /// if the sink is known to be away: what is left is safe, and waiting would only keep others from taking over.
    /// An error means that the outbox cannot be read or has failed. Blocks while reading.
    pub(crate) async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let (mut stopping, state) = (stop.clone(), self.state());
        let drain_timeout = self.config.drain_timeout;
        let out_of_time = async {
            let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
            if !matches!(*state.borrow(), SinkState::Away(..)) {
                sleep(drain_timeout).await;
            }
        };
        tokio::select! {
            // Finished work comes first: even with no time to drain, a round that has ended still counts.
            biased;
            result = self.work(stop) => result?,
            // Still writes what is settled by then.
            () = out_of_time => drop(timeout(PATIENCE, self.flush()).await),
        }
        self.sink.close().await;
        let left = self.outbox.pending();
        if left > 0 {
            let reason = match &*state.borrow() {
                SinkState::Away(reason, _) => format!("the sink is away: {reason}"),
                _ => format!("relay.drain_timeout ({drain_timeout:?}) is over"),
            };
            tracing::warn!(
                left,
                reason,
                "stopped before every event was delivered: they are kept, and the next start goes on with them"
            );
        }
        Ok(())
    }

    async fn work(&mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut last = self.outbox.last();
        while !*stop.borrow_and_update() {
            last.mark_unchanged();
            let (pause, wakes_after) = match self.round().await? {
                Round::Worked => continue,
                Round::Idle => (self.until_next_due()?, Some(Duration::ZERO)),
                Round::Away => self.pause(),
            };
            let news = async {
                match wakes_after {
                    Some(floor) if floor.is_zero() => last.changed().await,
                    Some(floor) => tokio::join!(last.changed(), sleep(floor)).0,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                changed = news => changed.context("the outbox is gone")?,
                _ = stop.changed() => {}
            }
        }
        self.drain().await
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        while *self.outbox.last().borrow() > self.cursor || self.outbox.deferred() > 0 {
            match self.round().await? {
                Round::Worked => {}
                Round::Away => sleep(self.pause().0).await,
                Round::Idle => break,
            }
        }
        self.flush().await
    }

    /// How long to wait after a round in which the sink accepted nothing, and after how long a new event
    /// may end the wait: only if that event may get through.
    fn pause(&self) -> (Duration, Option<Duration>) {
        let pause = self.backoff(self.standing.failures);
        match self.stalled_at {
            None => (pause, None),
            Some(_) => {
                let pause = pause.min(ASK_EVERY);
                (pause, Some(pause / 8))
            }
        }
    }

    /// Retries some deferred events, or sends the next events in the line.
    async fn round(&mut self) -> anyhow::Result<Round> {
        self.standing.say_dead();
        let is_line_empty = *self.outbox.last().borrow() <= self.cursor;
        if self.outbox.deferred() == 0 {
            self.release_after = None;
        } else if self.is_turn_of_deferred || is_line_empty {
            let due = self.due()?;
            if !due.is_empty() {
                return self.retry(due).await;
            }
        }
        self.is_turn_of_deferred = true;
        if is_line_empty {
            return Ok(self.ask().await);
        }
        let slots = self.read_line(self.cursor)?;
        if slots.is_empty() {
            return Ok(self.ask().await);
        }
        self.forward(slots).await
    }

    fn limit(&self) -> usize {
        let is_probing = self.standing.failures > 0 && self.stalled_at.is_none();
        if is_probing { 1 } else { self.sink.batch(self.config.batch) }
    }

    fn read_line(&self, after: u64) -> anyhow::Result<Vec<Slot>> {
        let last = *self.outbox.last().borrow(); // first: all of it is there to be read
        let slots = self.reader.run_here(|reading| reading.line(after, last, self.limit()));
        slots.context("cannot read the outbox")
    }

    /// With nothing to deliver, asks the sink now and then whether it works.
    async fn ask(&mut self) -> Round {
        if self.standing.failures == 0 && self.standing.has_answered_within(ASK_EVERY) {
            return Round::Idle;
        }
        match self.sink.ready().await {
            Err(reason) => self.away(reason),
            // The sink is up, but would not accept the events that are waiting.
            Ok(()) if self.is_unfit_for_deferred() => {
                self.standing.note_answer();
                Round::Idle
            }
            Ok(()) => {
                self.standing.up(self.outbox.pending());
                Round::Idle
            }
        }
    }

    fn away(&mut self, reason: Reason) -> Round {
        self.stalled_at = None;
        self.standing.fail(reason, self.outbox.pending());
        Round::Away
    }

    /// The sink works. If it did not before, the events deferred since then are sent first.
    fn works(&mut self) -> Round {
        if self.standing.kind().is_some() && self.outbox.deferred() > 0 {
            self.release_after = self.release_after.or(Some(0));
        }
        self.gives_back = false;
        self.standing.up(self.outbox.pending());
        Round::Worked
    }

    async fn settle(&mut self, settlement: Settlement) -> anyhow::Result<()> {
        if settlement.is_plain() {
            self.outbox.settle_through(settlement.through);
            return Ok(());
        }
        self.standing.died(&settlement.refused);
        self.outbox.settle(settlement).await.context("the outbox failed")
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let settlement = Settlement { through: self.cursor, ..Settlement::default() };
        self.outbox.settle(settlement).await.context("the outbox failed")
    }

    fn again(&self, position: u64, attempts: u32, reason: Reason) -> Again {
        let not_before = self.outbox.clock().steady() + self.backoff(attempts);
        Again { position, attempts, not_before, reason: reason.text }
    }

    fn refused(&self, position: u64, reason: String) -> Refused {
        Refused { position, at: self.outbox.clock().wall(), reason }
    }

    /// The wait after this many failures: doubled each time, bounded, and jittered down by up to half so
    /// that many bridges do not reconnect at the same moment.
    fn backoff(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.config.retry_min.saturating_mul(1 << doublings).min(self.config.retry_max);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
