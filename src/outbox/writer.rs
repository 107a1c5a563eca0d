//! The only thread that writes. It takes whatever is queued, writes it in one transaction with one sync, and
//! answers: a single waiter itself, many through a task on the reactor (waking them all from here would cost a
//! tenth more CPU). Between batches it maintains the history, the log and the health state.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use super::batch::{self, Answers, Batch, Room, Written};
use super::confirmations;
use super::health::{Condition, StorageError};
use super::history::{self, History};
use super::ids::{Ids, Seen};
use super::lock::Lock;
use super::log::{Log, checkpoint};
use super::reserve::Reserve;
use super::settlement::{self, Settlement};
use super::sound;
use super::{Command, Receipt, Refusal, Shared};
use super::{Config, Sync};
use crate::metrics::{CallbackOutcome, Metrics};
use crate::time::{Clock, Timestamp, milliseconds};

/// A batch with this many events is not extended: the first one would wait too long.
const MAX_BATCH: usize = 1024;

/// At this many events the writer yields to let the batch grow, at most this often.
const DEEP_QUEUE: usize = 5;
const MAX_YIELDS: usize = 4;

/// The longest that the watermark waits to be written. Each write costs a page of the log, and a crash
/// before it only causes events to be delivered again.
const SETTLE_EVERY: Duration = Duration::from_millis(50);

/// Bytes written after which the sizes of file and log are measured again.
const MEASURE_EVERY: u64 = 256 * 1024;

/// Roughly how many pages a small commit writes to the log.
const PAGES_A_COMMIT: u64 = 4;

/// How often history, log and health are maintained.
const TICK: Duration = Duration::from_secs(1);

/// How often to check that the files are still the ones that were opened.
const WATCH: Duration = Duration::from_millis(250);

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) commands: Receiver<Command>,
    pub(super) answers: UnboundedSender<Answers>,
    pub(super) shared: Arc<Shared>,
    pub(super) last: watch::Sender<u64>,
    pub(super) condition: Condition,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) lock: Arc<Lock>,
    pub(super) reserve: Reserve,
    pub(super) ids: Ids,
    pub(super) history: History,
    pub(super) log: Log,
    pub(super) page_size: u64,
    /// The position of the last durable event.
    pub(super) position: u64,
    /// What `PRAGMA synchronous` says now.
    pub(super) sync: Option<Sync>,
    /// When the watermark was last written, on the steady clock.
    pub(super) settled_at: Timestamp,
    /// Settlements that are not yet written, and who waits for them.
    pub(super) settling: Vec<(Settlement, oneshot::Sender<()>)>,
    /// More ids are remembered than configured.
    pub(super) forgets: bool,
    /// Bytes written since the last measurement.
    pub(super) unmeasured: u64,
    /// A test decides when to tick.
    pub(super) is_stepped: bool,
}

impl Writer {
    /// Loads from the file where the last run stopped.
    pub(super) fn load(&mut self) -> rusqlite::Result<()> {
        let connection = &self.connection;
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        sound::check_pages(connection, self.lock.path())?;
        let settled_through = sound::watermark(connection)?;
        self.position = sound::newest(connection, settled_through)?;
        self.history.load(connection, self.position)?;
        self.shared.settle_through.store(settled_through, Relaxed);
        self.shared.settled_through.store(settled_through, Relaxed);
        self.shared.deferred.store(sound::deferred(connection)?, Relaxed);
        self.shared.dead_letters.store(number("SELECT count(*) FROM dead_letters")?, Relaxed);
        self.shared.quarantined.store(number("SELECT count(*) FROM quarantine")?, Relaxed);
        self.ids.load(connection, self.clock.steady())?;
        self.measure()?;
        self.last.send_replace(self.position);
        Ok(())
    }

    /// Works until told to close, or until the file can no longer be trusted.
    pub(super) fn run(mut self) {
        match self.work() {
            Ok(()) => self.close(),
            Err(reason) => self.poison(&reason),
        }
    }

    fn work(&mut self) -> Result<(), String> {
        let (mut next_tick, mut next_watch) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            if now >= next_watch {
                next_watch = now + WATCH;
                self.lock.check()?;
            }
            if now >= next_tick {
                next_tick = now + TICK;
                if !self.is_stepped {
                    self.tick()?;
                }
            }
            let mut batch = Batch::default();
            match self.commands.recv_timeout(self.patience().min(next_watch.min(next_tick) - now)) {
                Ok(command) => batch.add(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => batch.is_last = true,
            }
            self.gather(&mut batch);
            #[cfg(test)]
            for done in std::mem::take(&mut batch.ticks) {
                self.tick()?;
                let _ = done.send(());
            }
            #[cfg(test)]
            let probes = std::mem::take(&mut batch.probes);
            let (is_last, steps) = (batch.is_last, std::mem::take(&mut batch.steps));
            self.commit(batch)?;
            self.take_steps(steps)?;
            #[cfg(test)]
            self.answer_probes(probes);
            if is_last {
                return Ok(());
            }
        }
    }

    /// How long to wait for the next command: not at all if there is something to trim, unless a full
    /// disk would refuse that again and again.
    fn patience(&self) -> Duration {
        let can_write = matches!(self.condition.refusal(), None | Some(Refusal::Full));
        if can_write && (self.surplus().is_some() || self.forgets) {
            Duration::ZERO
        } else if self.is_behind() {
            SETTLE_EVERY
        } else {
            TICK
        }
    }

    /// Adds whatever is queued. If that is a lot, yields a few times so that more can be queued: a larger
    /// batch still costs only one sync. Measured on two busy cores at 64 connections: batches half as
    /// large again, a tenth less CPU, half the p99.
    fn gather(&self, batch: &mut Batch) {
        for _ in 0..=MAX_YIELDS {
            let before = batch.appends.len();
            for command in self.commands.try_iter().take(MAX_BATCH) {
                batch.add(command);
            }
            let is_deep = batch.appends.len() >= DEEP_QUEUE;
            if !is_deep || batch.appends.len() == before || batch.appends.len() >= MAX_BATCH {
                return;
            }
            thread::yield_now();
        }
    }

    /// Writes one batch and answers it. An error is permanent.
    fn commit(&mut self, mut batch: Batch) -> Result<(), String> {
        if let Some(reason) = batch.poison.take() {
            self.answer(batch.refuse_all(Refusal::Poisoned));
            return Err(reason);
        }
        if batch.is_checkpointed {
            let has_room = self.condition.refusal() != Some(Refusal::DiskFull);
            let looked = self.log.checkpointed(&self.connection, has_room);
            StorageError::tolerate(looked, &self.reserve)?;
        }
        self.settling.append(&mut batch.settlements);
        if self.condition.refusal() == Some(Refusal::DiskFull) {
            return self.answer_without_room(batch); // the tick settles, using the reserve
        }
        let settles =
            !self.settling.is_empty() || self.is_behind() && (self.is_time() || batch.is_last);
        if batch.is_empty() && !settles && self.surplus().is_none() && !self.forgets {
            return Ok(());
        }
        let started = Instant::now();
        match self
            .timed(|writer| writer.write(&batch, settles))
            .map_err(|e| StorageError::of(&e, &self.reserve))
        {
            Ok(written) => {
                let accepted = written.accepted;
                self.apply(batch, written)?;
                if accepted > 0 {
                    self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                    self.metrics.commit_events.observe(accepted as f64);
                }
                Ok(())
            }
            Err(StorageError::Refused(refusal)) => {
                self.roll_back(refusal);
                self.answer(batch.refuse_all(refusal));
                Ok(())
            }
            Err(StorageError::Broken(reason)) => {
                self.answer(batch.refuse_all(Refusal::Poisoned));
                Err(reason)
            }
        }
    }

    /// Shows others how long a commit is taking, and afterwards how long it took.
    pub(super) fn timed<T>(&mut self, commit: impl FnOnce(&mut Self) -> T) -> T {
        let started = self.clock.steady();
        self.shared.commit_started.store(started.as_millis(), Relaxed);
        let result = commit(self);
        let took = self.clock.steady().since(started);
        self.shared.commit_took.store(milliseconds(took), Relaxed);
        self.shared.commit_started.store(0, Relaxed);
        result
    }

    /// One transaction, synced if it holds anything that will be answered OK.
    pub(super) fn write(&mut self, batch: &Batch, settles: bool) -> rusqlite::Result<Written> {
        // A settlement lost in a power cut only causes a repeat, and the next append's sync covers it too.
        self.set_sync(!batch.is_empty())?;
        let surplus = self.surplus();
        let now = self.clock.steady();
        let mut room = self.room();
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut written = Written::default();
        let moment = (self.position, now);
        batch::append(&transaction, &mut self.ids, batch, moment, &mut room, &mut written)?;
        let kept = self.shared.quarantined.load(Relaxed);
        let places = self.config.quarantine_events.saturating_sub(kept);
        batch::quarantine(&transaction, batch, places, &mut room, &mut written)?;
        if settles {
            let through = self.shared.settle_through.load(Relaxed);
            settlement::settle_through(&transaction, through)?;
            written.settled_through = Some(through);
            for (settlement, _) in &self.settling {
                let change = settlement::apply(&transaction, settlement)?;
                written.change.deferred += change.deferred;
                written.change.dead_letters += change.dead_letters;
                written.settled_through = written.settled_through.max(Some(settlement.through));
            }
        }
        if let Some(through) = surplus {
            history::trim(&transaction, through)?;
            written.trimmed_through = Some(through);
        }
        if self.forgets {
            self.ids.forget(&transaction, now)?;
        }
        transaction.commit()?;
        Ok(written)
    }

    pub(super) fn set_sync(&mut self, takes: bool) -> rusqlite::Result<()> {
        let sync = match self.config.sync {
            Sync::Full if !takes => Sync::Normal,
            configured => configured,
        };
        if self.sync != Some(sync) {
            self.connection.pragma_update(None, "synchronous", sync.pragma())?;
            self.sync = Some(sync);
        }
        Ok(())
    }

    pub(super) fn room(&self) -> Room {
        if self.log_bytes() >= self.config.max_bytes {
            return Room { bytes: 0, refusal: Refusal::LogHeld };
        }
        let used = self.shared.bytes.load(Relaxed);
        Room { bytes: self.config.max_bytes.saturating_sub(used), refusal: Refusal::Full }
    }

    /// Applies what was committed, and answers.
    pub(super) fn apply(&mut self, mut batch: Batch, written: Written) -> Result<(), String> {
        self.ids.commit();
        self.position += written.accepted;
        for (index, position) in &written.confirming {
            if let Some(waiter) = batch.appends[*index].0.confirm.take() {
                confirmations::expect(&self.connection, &self.shared, *position, waiter);
            }
        }
        // Set before any answer, so that a client with an answer finds its event. Those who wait for
        // events are woken after the answers, which are more urgent.
        let newest = self.position;
        self.last.send_if_modified(|last| {
            *last = newest;
            false
        });
        let shared = &self.shared;
        shared.bytes.fetch_add(written.bytes, Relaxed); // an estimate, until it is measured
        shared.quarantined.fetch_add(written.kept, Relaxed);
        if let Some(through) = written.settled_through {
            self.settled_at = self.clock.steady();
            // Deferred first: an event moving between the counts is briefly counted twice, not missed.
            add(&shared.deferred, written.change.deferred);
            add(&shared.dead_letters, written.change.dead_letters);
            shared.settled_through.fetch_max(through, Relaxed);
            shared.settle_through.fetch_max(through, Relaxed);
            for (_, done) in self.settling.drain(..) {
                let _ = done.send(()); // the relay may already be gone
            }
        }
        if let Some(through) = written.trimmed_through {
            self.history.oldest = through + 1;
        }
        let has_trimmed = written.trimmed_through.is_some();
        self.forgets = self.ids.len() > self.config.remember_ids_max;
        self.unmeasured += written.bytes + PAGES_A_COMMIT * self.page_size;
        self.count(&written);
        let Written { appends, quarantined, accepted, .. } = written;
        self.answer(batch.answer_with(appends, quarantined));
        if accepted > 0 {
            self.last.send_modify(|_| ());
        }
        self.look_after_size(has_trimmed)
    }

    fn look_after_size(&mut self, has_trimmed: bool) -> Result<(), String> {
        if self.unmeasured >= MEASURE_EVERY {
            self.look_after_log()?;
        } else if !(has_trimmed && self.history.is_near_full()) {
            return Ok(()); // otherwise measures, so that no more is removed than needed
        }
        let measured = self.measure();
        StorageError::tolerate(measured, &self.reserve)
    }

    /// Counts the outcomes of the callbacks, and logs what is new.
    fn count(&mut self, written: &Written) {
        let duplicates = written.appends.iter().filter(|o| **o == Ok(Receipt::Duplicate)).count();
        let accepted = written.accepted - written.confirmed;
        self.metrics.count_many(CallbackOutcome::Accepted, accepted);
        self.metrics.count_many(CallbackOutcome::Duplicate, duplicates as u64);
        let outcomes = written.appends.iter().chain(&written.quarantined);
        match outcomes.clone().find_map(|outcome| outcome.err()) {
            Some(Refusal::QuarantineFull) => {
                self.condition.warn_of_full_quarantine(self.config.quarantine_events);
            }
            Some(refusal) => self.condition.refuse(refusal, &self.shared),
            // That a small event still fits does not end a full outbox: the tick decides.
            None if self.condition.refusal() == Some(Refusal::Full) => {}
            None if written.accepted > 0 => self.condition.take(),
            None => {}
        }
    }

    /// Undoes what a failed transaction had started. Its settlements are written by a later one.
    pub(super) fn roll_back(&mut self, refusal: Refusal) {
        self.ids.roll_back();
        self.sync = None;
        if refusal == Refusal::DiskFull {
            self.history.press(true);
        }
        self.condition.refuse(refusal, &self.shared);
    }

    /// A repeat of a durable event is answered OK even if nothing new can be written.
    fn answer_without_room(&mut self, batch: Batch) -> Result<(), String> {
        let now = self.clock.steady();
        let mut outcomes = Vec::with_capacity(batch.appends.len());
        for (record, _) in &batch.appends {
            let seen = self.ids.seen(&self.connection, record.event.id, now, self.position);
            outcomes.push(match seen {
                Ok(Seen::InsideWindow(_)) => Ok(Receipt::Duplicate),
                _ => Err(Refusal::DiskFull),
            });
        }
        let duplicates = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        self.metrics.count_many(CallbackOutcome::Duplicate, duplicates as u64);
        self.answer(batch.answer_with(outcomes, std::iter::repeat(Err(Refusal::DiskFull))));
        Ok(())
    }

    /// A single answer is sent from here. Waking many takes a while, so a task does it.
    fn answer(&self, mut answers: Answers) {
        self.shared.queued.fetch_sub(answers.len(), Relaxed);
        match answers.len() {
            0 => {}
            1 => drop(answers.pop().map(|(waiter, outcome)| waiter.send(outcome))),
            _ => drop(self.answers.send(answers)), // if the runtime is gone, so are the waiters
        }
    }

    /// The last position that may be trimmed now, if one may.
    pub(super) fn surplus(&self) -> Option<u64> {
        self.history.surplus(self.position, self.shared.settled_through.load(Relaxed))
    }

    /// Whether something is settled but not yet written.
    pub(super) fn is_behind(&self) -> bool {
        let settle_through = self.shared.settle_through.load(Relaxed);
        settle_through > self.shared.settled_through.load(Relaxed)
    }

    /// Whether the watermark has waited long enough.
    pub(super) fn is_time(&self) -> bool {
        self.clock.steady().since(self.settled_at) >= SETTLE_EVERY
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.log.behind * self.page_size
    }

    /// Logs why, refuses whatever is queued, and ends. The file stays as it is for the next start.
    fn poison(self, reason: &str) {
        self.condition.poison(reason);
        let mut rest = Batch::default();
        for command in self.commands.try_iter() {
            rest.add(command);
        }
        self.answer(rest.refuse_all(Refusal::Poisoned));
    }

    fn close(self) {
        // Only saves the next start some reading; the log is as good as the file.
        let _ = checkpoint(&self.connection, "TRUNCATE");
        self.reserve.release();
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "the outbox was not closed cleanly; nothing is lost by that");
        }
    }
}

pub(super) fn add(gauge: &std::sync::atomic::AtomicU64, change: i64) {
    let _ = gauge.fetch_update(Relaxed, Relaxed, |value| Some(value.saturating_add_signed(change)));
}
