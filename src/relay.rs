//! Outbox → sink → settle. Reads events in order, hands them to the sink, and records what became of
//! each. Nothing is delivered that was not read back from the outbox, so what runs after a crash is
//! what runs all day.
//!
//! It runs on a thread of its own, with the clients of the brokers: it reads SQLite as it goes, and what a
//! broker costs is not taken from the thread that answers.
//!
//! There are two queues, the line and what is tried again, and they take turns. An event that fails by
//! itself is deferred and tried again by itself; the line moves on. While the sink is away the relay
//! waits, longer each time and with jitter, and then tries with one event. A batch in which every event
//! fails alike is a sink that is away, too, but that is found out by a whole batch: others may get through.
//! Once something is delivered again, what was deferred goes first, in order.
//!
//! What is more than "delivered in line" is written before the next round begins: else that round would
//! read again what was just settled.

mod deferred;
#[cfg(test)]
mod model;
mod moment;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config;
use crate::metrics::Metrics;
use crate::outbox::{Again, Damaged, Outbox, Reader, Refused, Settlement, Slot, Stored, position};
use crate::sink::{Kind, Reason, Sink, Verdict};
use crate::time::milliseconds;
use moment::Moment;
pub(crate) use standing::SinkState;
use standing::Standing;

/// How long to wait for what ought to come at once, or to look again for what may have come.
const PATIENCE: Duration = Duration::from_secs(1);

/// With nothing to deliver, how often the sink is asked whether it would take something: an operator
/// wants to know before the next event does. Also how often one of the deferred is tried whatever its time.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How long it counts that others got through while each event at the head of the line failed.
const PARTIAL: Duration = Duration::from_secs(60);

pub(crate) struct Relay {
    config: config::Relay,
    outbox: Outbox,
    reader: Reader,
    sink: Sink,
    metrics: Arc<Metrics>,
    standing: Standing,
    /// Everything up to here was handed over and needs no more reading.
    cursor: u64,
    /// Delivered although an event before them has to wait for the sink: not to be sent again.
    ahead: HashSet<u64>,
    /// Since when each event of the line fails alike.
    stalled_at: Option<Moment>,
    /// When some further down the line were tried last, and where to go on with that.
    scouted_at: u64,
    scout_after: u64,
    /// When it was seen last that it is some events that fail, and not the sink.
    partial_at: Option<Moment>,
    delivered_at: Option<Moment>,
    /// How many moments were noted so far.
    moments: u64,
    /// The deferred have the next turn.
    is_turn_of_deferred: bool,
    /// The deferred after this position go first, whatever their time.
    release_after: Option<u64>,
    probed_at: u64,
    /// All that is tried are deferred events, and they fail as ever.
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
        config: config::Relay,
        outbox: Outbox,
        reader: Reader,
        sink: Sink,
        metrics: Arc<Metrics>,
    ) -> Self {
        let needs_nobody = matches!(sink, Sink::Embedded);
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
            scouted_at: now,
            scout_after: 0,
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

    /// Delivers until `stop` says so, and then on until nothing is left or `relay.drain_timeout` has
    /// passed. An error means that the outbox cannot be read or has failed. Blocks where it reads.
    pub(crate) async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut stopping = stop.clone();
        let drain_timeout = self.config.drain_timeout;
        let out_of_time = async {
            let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
            sleep(drain_timeout).await;
        };
        tokio::select! {
            // What is ready is done first: with no time to drain, a round that has ended still counts.
            biased;
            result = self.work(stop) => result?,
            // What is settled by then shall count as such.
            () = out_of_time => drop(timeout(PATIENCE, self.flush()).await),
        }
        self.sink.close().await;
        let left = self.outbox.pending();
        if left > 0 {
            tracing::warn!(
                left,
                "stopped before every event was delivered: the next start goes on"
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

    /// How long to wait after a round in which the sink took nothing, and whether a new event ends that:
    /// only where it may be one that gets through.
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

    /// Tries some of the deferred once more, or the next events in line.
    async fn round(&mut self) -> anyhow::Result<Round> {
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
        let slots = self.reader.run_here(|reading| reading.after(after, self.limit()));
        slots.context("cannot read the outbox")
    }

    /// With nothing to deliver, asks the sink now and then how it is.
    async fn ask(&mut self) -> Round {
        if self.standing.failures == 0 && self.standing.was_heard_within(ASK_EVERY) {
            return Round::Idle;
        }
        match self.sink.ready().await {
            Err(reason) => self.away(reason),
            // It would take something; but not what waits.
            Ok(()) if self.is_unfit_for_deferred() => {
                self.standing.hear();
                Round::Idle
            }
            Ok(()) => {
                self.standing.up(self.outbox.pending());
                Round::Idle
            }
        }
    }

    /// Hands over the next events in line.
    async fn forward(&mut self, slots: Vec<Slot>) -> anyhow::Result<Round> {
        let through = slots.last().map_or(self.cursor, position);
        let (events, damaged) = self.split(slots);
        let verdicts = self.deliver(&events).await;
        if let Some(reason) = all_alike(&verdicts)
            && !self.others_get_through()
        {
            return self.stall(reason, through).await;
        }
        let mut settlement = Settlement { through, refused: damaged, ..Settlement::default() };
        let mut away = None;
        let has_away = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Away(_)));
        for (event, verdict) in events.iter().zip(verdicts) {
            let position = event.position;
            match verdict {
                Verdict::Delivered if settlement.through < position => {
                    self.ahead.insert(position);
                }
                Verdict::Delivered => {}
                Verdict::Away(reason) => {
                    settlement.through = settlement.through.min(position - 1);
                    away = away.or(Some(reason));
                }
                // The sink is away: whatever it did not take keeps its place.
                _ if has_away => settlement.through = settlement.through.min(position - 1),
                Verdict::Later(reason) => settlement.again.push(self.again(position, 1, reason)),
                Verdict::Refused(reason) => {
                    settlement.refused.push(self.refused(position, reason.text))
                }
            }
        }
        let through = settlement.through;
        settlement.refused.retain(|refused| refused.position <= through);
        self.cursor = through;
        self.ahead.retain(|position| *position > through);
        self.stalled_at = None;
        self.settle(settlement).await?;
        match away {
            Some(reason) => Ok(self.away(reason)),
            None if events.is_empty() => Ok(Round::Worked),
            None => Ok(self.works()),
        }
    }

    /// What can be handed over, and what cannot be read and so never will be.
    fn split(&self, slots: Vec<Slot>) -> (Vec<Stored>, Vec<Refused>) {
        let (mut events, mut damaged) = (Vec::with_capacity(slots.len()), Vec::new());
        for slot in slots {
            match slot {
                Ok(event) if self.ahead.contains(&event.position) => {}
                Ok(event) => events.push(event),
                Err(Damaged { position, reason }) => damaged.push(self.refused(position, reason)),
            }
        }
        (events, damaged)
    }

    /// Whether others are delivered while those at the head of the line fail alike.
    fn others_get_through(&mut self) -> bool {
        let since = self.stalled_at.max(self.partial_at);
        let has_delivered = since.is_some_and(|since| self.delivered_at > Some(since));
        if has_delivered {
            self.partial_at = Some(self.moment());
        }
        self.partial_at.is_some_and(|moment| self.since(moment.at) < PARTIAL)
    }

    /// Every event of a batch failed alike: all keep their places. After a while some behind them are tried:
    /// where they get through, it is these events and not the sink. Not at once, and seldom, for those
    /// behind overtake these if the sink comes back in just that moment.
    async fn stall(&mut self, reason: Reason, through: u64) -> anyhow::Result<Round> {
        if self.stalled_at.is_none() {
            let now = self.moment();
            (self.stalled_at, self.scouted_at) = (Some(now), now.at);
        }
        self.standing.fail(reason, self.outbox.pending());
        if self.since(self.scouted_at) >= self.config.retry_max {
            self.scouted_at = self.outbox.clock().steady();
            let slots = self.read_line(self.scout_after.max(through))?;
            self.scout_after = slots.last().map_or(0, position);
            let (events, _) = self.split(slots);
            let verdicts = self.deliver(&events).await;
            let delivered = events.iter().zip(verdicts).filter(|(_, v)| *v == Verdict::Delivered);
            self.ahead.extend(delivered.map(|(event, _)| event.position));
        }
        Ok(Round::Away)
    }

    fn away(&mut self, reason: Reason) -> Round {
        self.stalled_at = None;
        self.standing.fail(reason, self.outbox.pending());
        Round::Away
    }

    /// The sink works. Where it did not, what was deferred meanwhile goes first.
    fn works(&mut self) -> Round {
        if self.standing.kind().is_some() && self.outbox.deferred() > 0 {
            self.release_after = self.release_after.or(Some(0));
        }
        self.gives_back = false;
        self.standing.up(self.outbox.pending());
        Round::Worked
    }

    async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        if events.is_empty() {
            return Vec::new();
        }
        let started = Instant::now();
        let mut verdicts = self.sink.deliver(events).await;
        if verdicts.len() != events.len() {
            let text = format!(
                "the sink judged {} of {} events: this is a fault of topic-bridge, please report it",
                verdicts.len(),
                events.len()
            );
            verdicts = vec![Verdict::Away(Reason::new(Kind::Other, text)); events.len()];
        }
        self.metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        let now = self.outbox.clock().steady();
        for (event, verdict) in events.iter().zip(&verdicts) {
            match verdict {
                Verdict::Delivered => {
                    let milliseconds = now.saturating_sub(event.steady_at);
                    self.metrics.delivery_seconds.observe(milliseconds as f64 / 1000.0);
                    self.metrics.published.inc();
                    self.delivered_at = Some(self.moment());
                }
                Verdict::Later(reason) | Verdict::Refused(reason) | Verdict::Away(reason) => {
                    self.metrics.publish_errors.with_label_values(&[reason.kind.name()]).inc();
                }
            }
        }
        verdicts
    }

    async fn settle(&self, settlement: Settlement) -> anyhow::Result<()> {
        if settlement.is_plain() {
            self.outbox.settle_through(settlement.through);
            return Ok(());
        }
        for refused in &settlement.refused {
            tracing::error!(
                position = refused.position,
                reason = refused.reason,
                "the sink refused an event for good: it is kept as a dead letter, see \
                 `topic-bridge outbox list --dead`"
            );
        }
        self.outbox.settle(settlement).await.context("the outbox failed")
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let settlement = Settlement { through: self.cursor, ..Settlement::default() };
        self.outbox.settle(settlement).await.context("the outbox failed")
    }

    fn again(&self, position: u64, attempts: u32, reason: Reason) -> Again {
        let wait = milliseconds(self.backoff(attempts));
        let not_before = self.outbox.clock().steady().saturating_add(wait);
        Again { position, attempts, not_before, reason: reason.text }
    }

    fn refused(&self, position: u64, reason: String) -> Refused {
        Refused { position, at: self.outbox.clock().wall(), reason }
    }

    /// The wait after so many failures: doubled each time, bounded, and jittered down by up to half
    /// so that many bridges do not knock together.
    fn backoff(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.config.retry_min.saturating_mul(1 << doublings).min(self.config.retry_max);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The reason, if every event is to be tried later for the same one.
fn all_alike(verdicts: &[Verdict]) -> Option<Reason> {
    let Some(Verdict::Later(first)) = verdicts.first() else { return None };
    let is_alike = |verdict: &Verdict| match verdict {
        Verdict::Later(reason) => reason.kind == first.kind,
        _ => false,
    };
    verdicts.iter().all(is_alike).then(|| first.clone())
}
