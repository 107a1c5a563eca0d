//! Outbox → sink → settle. Reads events in order, hands them to the sink, and records what became of
//! each. Nothing is delivered that was not read back from the outbox, so what runs after a crash is
//! what runs all day.
//!
//! While the sink is away the relay waits, longer each time and with jitter, and then tries with one
//! event. An event that fails by itself is deferred and tried again by itself; the line moves on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::config;
use crate::event;
use crate::metrics::Metrics;
use crate::outbox::{Again, Deferred, Outbox, Reader, Refused, Settlement, Stored};
use crate::sink::{Reason, Sink, Verdict};

/// Whether the sink takes events, and why not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SinkState {
    Up,
    Away(String),
}

pub(crate) struct Relay {
    config: config::Relay,
    outbox: Outbox,
    reader: Reader,
    sink: Sink,
    metrics: Arc<Metrics>,
    state: watch::Sender<SinkState>,
    /// Everything up to here was handed over and needs no more reading.
    cursor: u64,
    /// Delivered although an event before them has to wait for the sink: not to be sent again.
    ahead: HashSet<u64>,
    /// Attempts in a row at which the sink was away.
    failures: u32,
    /// The last settlement, until it is written.
    settling: Option<oneshot::Receiver<()>>,
}

/// What a round did.
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
        let state = watch::Sender::new(SinkState::Up);
        let cursor = outbox.settled_through();
        metrics.sink_up.set(1);
        let (ahead, failures, settling) = (HashSet::new(), 0, None);
        Relay { config, outbox, reader, sink, metrics, state, cursor, ahead, failures, settling }
    }

    pub(crate) fn state(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
    }

    /// Delivers until `stop` says so, and then on until nothing is left or `relay.drain_timeout` has
    /// passed. An error means that the outbox cannot be read or has failed.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut last = self.outbox.last();
        loop {
            let is_stopping = *stop.borrow_and_update();
            if is_stopping {
                break;
            }
            last.mark_unchanged();
            let pause = match self.round().await? {
                Round::Worked => continue,
                Round::Away => self.backoff(self.failures),
                Round::Idle => self.until_next_due().await?,
            };
            let is_away = self.failures > 0;
            tokio::select! {
                () = sleep(pause) => {}
                changed = last.changed(), if !is_away => changed.context("the outbox is gone")?,
                _ = stop.changed() => {}
            }
        }
        let left = match timeout(self.config.drain_timeout, self.drain()).await {
            Ok(result) => result.map(|()| self.outbox.pending())?,
            Err(_) => self.outbox.pending(),
        };
        if left > 0 {
            tracing::warn!(
                left,
                "stopped before every event was delivered: the next start goes on"
            );
        }
        Ok(())
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        loop {
            match self.round().await? {
                Round::Worked => {}
                Round::Away => sleep(self.backoff(self.failures)).await,
                Round::Idle => break,
            }
        }
        if let Some(settling) = self.settling.take() {
            settling.await.context("the outbox failed")?;
        }
        Ok(())
    }

    /// Tries what is due once more, else the next events in line.
    async fn round(&mut self) -> anyhow::Result<Round> {
        let limit = if self.failures > 0 { 1 } else { self.config.batch };
        if self.outbox.deferred() > 0 {
            if let Some(settling) = self.settling.take() {
                settling.await.context("the outbox failed")?; // or what it deferred is read again
            }
            let now = now();
            let due = self.reader.run(move |reading| reading.due(now, limit)).await;
            let due = due.context("cannot read the deferred events")?;
            if !due.is_empty() {
                return self.retry(due).await;
            }
        }
        let after = self.cursor;
        let events = self.reader.run(move |reading| reading.after(after, limit)).await;
        let mut events = events.context("cannot read the outbox")?;
        let Some(through) = events.last().map(|event| event.position) else {
            return Ok(Round::Idle);
        };
        events.retain(|event| !self.ahead.contains(&event.position));
        self.forward(events, through).await
    }

    /// Hands over the next events in line, the last of which has the position `through`.
    async fn forward(&mut self, events: Vec<Stored>, through: u64) -> anyhow::Result<Round> {
        let verdicts = self.deliver(&events).await;
        let mut settlement = Settlement { through, ..Settlement::default() };
        let mut away = None;
        for (event, verdict) in events.iter().zip(verdicts) {
            let position = event.position;
            if away.is_some() && !matches!(verdict, Verdict::Away(_)) {
                self.ahead.insert(position);
            }
            match verdict {
                Verdict::Delivered => {}
                Verdict::Later(reason) => settlement.again.push(self.again(position, 1, reason)),
                Verdict::Refused(reason) => settlement.refused.push(refused(position, reason)),
                Verdict::Away(reason) if away.is_none() => {
                    settlement.through = position - 1;
                    away = Some(reason);
                }
                Verdict::Away(_) => {}
            }
        }
        self.cursor = settlement.through;
        let cursor = self.cursor;
        self.ahead.retain(|position| *position > cursor);
        self.settle(settlement).await?;
        Ok(self.judge_sink(away))
    }

    /// Tries deferred events once more.
    async fn retry(&mut self, due: Vec<Deferred>) -> anyhow::Result<Round> {
        let (attempts, events): (Vec<_>, Vec<_>) =
            due.into_iter().map(|deferred| (deferred.attempts, deferred.stored)).unzip();
        let verdicts = self.deliver(&events).await;
        let mut settlement = Settlement { through: self.cursor, ..Settlement::default() };
        let mut away = None;
        for ((event, attempts), verdict) in events.iter().zip(attempts).zip(verdicts) {
            let position = event.position;
            match verdict {
                Verdict::Delivered => settlement.delivered_at_last.push(position),
                Verdict::Refused(reason) => settlement.refused.push(refused(position, reason)),
                Verdict::Later(reason) => {
                    settlement.again.push(self.again(position, attempts.saturating_add(1), reason));
                }
                Verdict::Away(reason) => away = away.or(Some(reason)),
            }
        }
        self.settle(settlement).await?;
        Ok(self.judge_sink(away))
    }

    async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let started = Instant::now();
        let verdicts = self.sink.deliver(events).await;
        debug_assert_eq!(verdicts.len(), events.len(), "a verdict for each event");
        self.metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        let now = now();
        for (event, verdict) in events.iter().zip(&verdicts) {
            match verdict {
                Verdict::Delivered => {
                    let milliseconds = now.saturating_sub(event.accepted_at);
                    self.metrics.delivery_seconds.observe(milliseconds as f64 / 1000.0);
                    self.metrics.published.inc();
                }
                Verdict::Later(reason) | Verdict::Refused(reason) | Verdict::Away(reason) => {
                    self.metrics.publish_errors.with_label_values(&[reason.kind]).inc();
                }
            }
        }
        verdicts
    }

    /// Has it written, after the one before: a crash in between repeats at most two batches.
    async fn settle(&mut self, settlement: Settlement) -> anyhow::Result<()> {
        if settlement.changes_nothing(self.outbox.settled_through()) {
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
        let settling = self.outbox.settle(settlement);
        if let Some(before) = self.settling.replace(settling) {
            before.await.context("the outbox failed")?;
        }
        Ok(())
    }

    fn judge_sink(&mut self, away: Option<Reason>) -> Round {
        let Some(reason) = away else {
            if self.failures > 0 {
                let backlog = self.outbox.pending();
                tracing::info!(attempts = self.failures, backlog, "the sink takes events again");
                self.failures = 0;
                self.metrics.sink_up.set(1);
                self.state.send_replace(SinkState::Up);
            }
            return Round::Worked;
        };
        if self.failures == 0 {
            tracing::warn!(
                kind = reason.kind,
                reason = reason.text,
                "the sink takes no events: callbacks are still taken and kept, delivery goes on by \
                 itself when the sink is back"
            );
        }
        self.failures = self.failures.saturating_add(1);
        self.metrics.sink_up.set(0);
        self.state.send_replace(SinkState::Away(reason.text));
        Round::Away
    }

    fn again(&self, position: u64, attempts: u32, reason: Reason) -> Again {
        let wait = u64::try_from(self.backoff(attempts).as_millis()).unwrap_or(u64::MAX);
        Again { position, attempts, not_before: now().saturating_add(wait), reason: reason.text }
    }

    /// The wait after so many failures: doubled each time, bounded, and jittered down by up to half
    /// so that many bridges do not knock together.
    fn backoff(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.config.retry_min.saturating_mul(1 << doublings).min(self.config.retry_max);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    async fn until_next_due(&self) -> anyhow::Result<Duration> {
        let forever = Duration::from_secs(3600);
        if self.outbox.deferred() == 0 {
            return Ok(forever);
        }
        let due = self.reader.run(|reading| reading.next_due()).await;
        let due = due.context("cannot read the deferred events")?;
        Ok(due.map_or(forever, |due| Duration::from_millis(due.saturating_sub(now()).max(1))))
    }
}

fn refused(position: u64, reason: Reason) -> Refused {
    Refused { position, at: now(), reason: reason.text }
}

fn now() -> u64 {
    event::since_epoch(SystemTime::now())
}
