//! Outbox → sink → settle. Reads events in order, hands them to the sink, and records what became of
//! each. Nothing is delivered that was not read back from the outbox, so what runs after a crash is
//! what runs all day.
//!
//! It runs on a thread of its own, with the clients of the brokers: it reads SQLite as it goes, and what a
//! broker costs is not taken from the thread that answers.
//!
//! While the sink is away the relay waits, longer each time and with jitter, and then tries with one
//! event. An event that fails by itself is deferred and tried again by itself; the line moves on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config;
use crate::event;
use crate::metrics::Metrics;
use crate::outbox::{Again, Deferred, Outbox, Reader, Refused, Settlement, Stored};
use crate::sink::{Kind, Reason, Sink, Verdict};

/// How long to wait for what ought to come at once, or to look again for what may have come.
const PATIENCE: Duration = Duration::from_secs(1);

/// With nothing to deliver, how often the sink is asked whether it would take something: an operator
/// wants to know before the next event does.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Whether the sink takes events, and why not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SinkState {
    /// Not asked yet.
    Unknown,
    Up,
    Away(String, Kind),
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
    /// When the sink last said how it is.
    heard_at: Option<Instant>,
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
        let needs_nobody = matches!(sink, Sink::Embedded);
        let state = if needs_nobody { SinkState::Up } else { SinkState::Unknown };
        metrics.sink_up.set(i64::from(needs_nobody));
        let state = watch::Sender::new(state);
        let cursor = outbox.settled_through();
        Relay {
            config,
            outbox,
            reader,
            sink,
            metrics,
            state,
            cursor,
            ahead: HashSet::new(),
            failures: 0,
            heard_at: None,
        }
    }

    pub(crate) fn state(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
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
            () = out_of_time => drop(timeout(PATIENCE, self.outbox.flush()).await),
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
            let pause = match self.round().await? {
                Round::Worked => continue,
                Round::Away => self.backoff(self.failures),
                Round::Idle => self.until_next_due()?,
            };
            let is_away = self.failures > 0;
            tokio::select! {
                () = sleep(pause) => {}
                changed = last.changed(), if !is_away => changed.context("the outbox is gone")?,
                _ = stop.changed() => {}
            }
        }
        self.drain().await
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        while *self.outbox.last().borrow() > self.cursor || self.outbox.deferred() > 0 {
            match self.round().await? {
                Round::Worked => {}
                Round::Away => sleep(self.backoff(self.failures)).await,
                Round::Idle => break,
            }
        }
        self.outbox.flush().await.context("the outbox failed")
    }

    /// Tries what is due once more, else the next events in line.
    async fn round(&mut self) -> anyhow::Result<Round> {
        let limit = if self.failures > 0 { 1 } else { self.batch() };
        if self.outbox.deferred() > 0 {
            let due = self.reader.run_here(|reading| reading.due(now(), limit));
            let due = due.context("cannot read the deferred events")?;
            if !due.is_empty() {
                return self.retry(due).await;
            }
        }
        if *self.outbox.last().borrow() <= self.cursor {
            return Ok(self.ask().await);
        }
        let events = self.reader.run_here(|reading| reading.after(self.cursor, limit));
        let mut events = events.context("cannot read the outbox")?;
        let Some(through) = events.last().map(|event| event.position) else {
            return Ok(self.ask().await);
        };
        events.retain(|event| !self.ahead.contains(&event.position));
        self.forward(events, through).await
    }

    fn batch(&self) -> usize {
        self.sink.batch(self.config.batch)
    }

    /// With nothing to deliver, asks the sink now and then how it is.
    async fn ask(&mut self) -> Round {
        let is_due = self.failures > 0 || self.heard_at.is_none_or(|at| at.elapsed() >= ASK_EVERY);
        if !is_due {
            return Round::Idle;
        }
        let away = self.sink.ready().await.err();
        match self.judge_sink(away) {
            Round::Worked => Round::Idle,
            other => other,
        }
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
        self.settle(settlement).await;
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
        self.settle(settlement).await;
        Ok(self.judge_sink(away))
    }

    async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let started = Instant::now();
        let verdicts = match events {
            [] => Vec::new(),
            events => self.sink.deliver(events).await,
        };
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
                    self.metrics.publish_errors.with_label_values(&[reason.kind.name()]).inc();
                }
            }
        }
        verdicts
    }

    async fn settle(&self, settlement: Settlement) {
        let is_plain = settlement.is_all_delivered();
        for refused in &settlement.refused {
            tracing::error!(
                position = refused.position,
                reason = refused.reason,
                "the sink refused an event for good: it is kept as a dead letter, see \
                 `topic-bridge outbox list --dead`"
            );
        }
        self.outbox.settle(settlement);
        if !is_plain {
            // What is deferred is read back from the outbox, so it has to be there; on a full disk it
            // comes later, and is looked for once a second.
            let _ = timeout(PATIENCE, self.outbox.flush()).await;
        }
    }

    fn judge_sink(&mut self, away: Option<Reason>) -> Round {
        self.heard_at = Some(Instant::now());
        let Some(reason) = away else {
            if self.failures > 0 {
                let backlog = self.outbox.pending();
                tracing::info!(attempts = self.failures, backlog, "the sink takes events again");
                self.failures = 0;
            }
            if *self.state.borrow() != SinkState::Up {
                self.metrics.sink_up.set(1);
                self.state.send_replace(SinkState::Up);
            }
            return Round::Worked;
        };
        let is_news = match &*self.state.borrow() {
            SinkState::Away(_, kind) => *kind != reason.kind,
            _ => true,
        };
        if is_news {
            tracing::warn!(
                kind = reason.kind.name(),
                reason = reason.text,
                "the sink takes no events: callbacks are still taken and kept, delivery goes on by \
                 itself when the sink is back"
            );
        }
        self.failures = self.failures.saturating_add(1);
        self.metrics.sink_up.set(0);
        self.state.send_replace(SinkState::Away(reason.text, reason.kind));
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

    fn until_next_due(&self) -> anyhow::Result<Duration> {
        if self.outbox.deferred() == 0 {
            return Ok(PATIENCE);
        }
        let due = self.reader.run_here(|reading| reading.next_due());
        let due = due.context("cannot read the deferred events")?;
        let due = due.unwrap_or(u64::MAX).saturating_sub(now());
        Ok(Duration::from_millis(due).clamp(Duration::from_millis(1), PATIENCE))
    }
}

fn refused(position: u64, reason: Reason) -> Refused {
    Refused { position, at: now(), reason: reason.text }
}

fn now() -> u64 {
    event::since_epoch(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sync;
    use crate::outbox::{List, Record, Workers};
    use crate::sink::scripted::{Journal, Scripted};
    use uuid::Uuid;

    /// An outbox that holds `events` events, and what it takes to run a relay over it.
    struct Bench {
        outbox: Outbox,
        workers: Workers,
        metrics: Arc<Metrics>,
        stop: watch::Sender<bool>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        async fn new(events: u64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = config::Outbox {
                path: folder.path().join("outbox.db"),
                sync: Sync::Off,
                max_bytes: 1 << 30,
                dedupe_window: Duration::ZERO,
                history: Duration::from_secs(3600),
                history_events: 1000,
                quarantine_events: 1,
                history_gives_way: false,
            };
            let metrics = Arc::new(Metrics::new("embedded"));
            let (outbox, workers) = Outbox::open(&config, 1000, metrics.clone()).unwrap();
            for number in 0..events {
                let id = Uuid::from_u128(number.into());
                let record =
                    Record { id, accepted_at: now(), event: "{}".into(), traceparent: None };
                outbox.append(record).unwrap().await.unwrap().unwrap();
            }
            let stop = watch::Sender::new(false);
            Bench { outbox, workers, metrics, stop, _folder: folder }
        }

        fn relay(&self, sink: Scripted) -> Relay {
            let config = config::Relay {
                batch: 10,
                retry_min: Duration::from_millis(1),
                retry_max: Duration::from_millis(4),
                confirm_timeout: Duration::from_secs(1),
                drain_timeout: Duration::from_millis(50),
            };
            let reader = self.outbox.reader().unwrap();
            let sink = Sink::Scripted(sink);
            Relay::new(config, self.outbox.clone(), reader, sink, self.metrics.clone())
        }

        /// Runs the relay until nothing is pending, then stops it.
        async fn drain(&self, sink: Scripted) {
            let relay = self.relay(sink);
            let state = relay.state();
            let running = tokio::spawn(relay.run(self.stop.subscribe()));
            while self.outbox.pending() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(!running.is_finished());
            }
            assert_eq!(*state.borrow(), SinkState::Up);
            self.stop.send_replace(true);
            running.await.unwrap().unwrap();
        }

        async fn end(self) {
            tokio::task::spawn_blocking(|| self.workers.close()).await.unwrap();
        }
    }

    fn reason() -> Reason {
        Reason::new(Kind::Other, "because")
    }

    fn delivered(journal: &Journal) -> Vec<u64> {
        let journal = journal.lock().unwrap();
        let all = journal.iter().flatten();
        all.filter(|(_, verdict)| *verdict == Verdict::Delivered).map(|(at, _)| *at).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn events_are_delivered_in_order_in_batches() {
        let bench = Bench::new(35).await;
        let (sink, journal) = Scripted::new(|_| Verdict::Delivered);
        bench.drain(sink).await;
        assert_eq!(delivered(&journal), (1..=35).collect::<Vec<_>>());
        let sizes: Vec<_> = journal.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 10, 5]);
        assert_eq!(bench.metrics.published.get(), 35);
        bench.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_event_that_fails_is_tried_again_by_itself_while_the_line_moves_on() {
        let bench = Bench::new(20).await;
        let mut tries = 0;
        let (sink, journal) = Scripted::new(move |position| {
            if position == 3 {
                tries += 1;
            }
            if position == 3 && tries < 4 { Verdict::Later(reason()) } else { Verdict::Delivered }
        });
        bench.drain(sink).await;
        let delivered = delivered(&journal);
        assert_eq!(delivered.iter().filter(|position| **position == 3).count(), 1);
        let mut others = delivered;
        others.retain(|position| *position != 3);
        assert_eq!(others, (1..=20).filter(|position| *position != 3).collect::<Vec<_>>());
        assert_eq!(bench.metrics.publish_errors.with_label_values(&["other"]).get(), 3);
        bench.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refused_event_becomes_a_dead_letter_and_the_line_moves_on() {
        let bench = Bench::new(12).await;
        let (sink, journal) = Scripted::new(|position| match position {
            4 | 11 => Verdict::Refused(reason()),
            _ => Verdict::Delivered,
        });
        bench.drain(sink).await;
        assert_eq!(delivered(&journal).len(), 10);
        let reader = bench.outbox.reader().unwrap();
        let dead = reader.run_here(|reading| reading.list(List::DeadLetters, 0, 10)).unwrap();
        let dead: Vec<_> =
            dead.iter().map(|dead| (dead.position, dead.reason.as_deref())).collect();
        assert_eq!(dead, [(4, Some("because")), (11, Some("because"))]);
        bench.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn while_the_sink_is_away_one_event_probes_and_order_is_kept() {
        let bench = Bench::new(25).await;
        let mut calls = 0;
        // The first batch is cut in the middle, though its last event got through; then two probes fail.
        let (sink, journal) = Scripted::new(move |_| {
            calls += 1;
            let is_away = matches!(calls, 5..=9 | 11 | 12);
            if is_away { Verdict::Away(reason()) } else { Verdict::Delivered }
        });
        bench.drain(sink).await;
        let sizes: Vec<_> = journal.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes[..4], [10, 1, 1, 1], "a batch, two probes that fail, one that does not");
        let delivered = delivered(&journal);
        let expected: Vec<_> = [1, 2, 3, 4, 10].into_iter().chain(5..=9).chain(11..=25).collect();
        assert_eq!(delivered, expected, "what was ahead is not sent twice");
        bench.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn stopping_ends_in_time_and_the_next_start_goes_on() {
        let bench = Bench::new(30).await;
        let (sink, _) = Scripted::new(|position| match position {
            1..=10 => Verdict::Delivered,
            _ => Verdict::Away(reason()),
        });
        let relay = bench.relay(sink);
        let mut state = relay.state();
        let running = tokio::spawn(relay.run(bench.stop.subscribe()));
        state.wait_for(|state| matches!(state, SinkState::Away(..))).await.unwrap();
        bench.stop.send_replace(true);
        running.await.unwrap().unwrap();
        assert_eq!(bench.outbox.pending(), 20);

        bench.stop.send_replace(false);
        let (sink, journal) = Scripted::new(|_| Verdict::Delivered);
        bench.drain(sink).await;
        assert_eq!(delivered(&journal), (11..=30).collect::<Vec<_>>());
        bench.end().await;
    }
}
