//! The one thread that writes. It takes whatever is queued, writes it in one transaction with one
//! sync, and hands the answers to a task on the reactor (waking the waiters from here would cost a
//! tenth more CPU). Between batches it trims the history and gives space back.

use std::fs::File;
use std::mem;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::dedupe::{Dedupe, Seen};
use super::statements::{insert_misfit, settle, trim};
use super::upkeep::{MAX_LOG_PAGES, checkpoint, run_checkpoints};
use super::{
    Command, Gauges, Health, Misfit, OpenError, Outbox, Outcome, Receipt, Record, Refusal,
    Settlement, Waiter, Workers, schema,
};
use crate::config::{self, Sync};
use crate::event::{self, TopicCreated};
use crate::metrics::{CallbackOutcome, Metrics};

/// With so many events a batch is not made larger: the first would wait too long.
const MAX_BATCH: usize = 1024;

/// From so many events on a batch may grow by giving way, and how often.
const DEEP_QUEUE: usize = 5;
const MAX_YIELDS: usize = 4;

/// Settlements wait at most this long to be written: each costs a page of the log, and all that a
/// crash before it can do is to have its events delivered once more.
const SETTLE_EVERY: Duration = Duration::from_millis(50);

/// Bytes written after which the size of file and log is asked for again.
const MEASURE_EVERY: u64 = 256 * 1024;

/// How often the history is looked at, and a full disk tried again.
const TICK: Duration = Duration::from_secs(1);

/// Events that one transaction trims at most, so that no callback waits long behind it.
const TRIM_AT_ONCE: u64 = 1024;

/// What a row costs beside its text.
const ROW_OVERHEAD: u64 = 80;

type Answers = Vec<(Waiter, Outcome)>;

pub(super) struct Writer {
    pub(super) connection: Connection,
    commands: Receiver<Command>,
    answers: UnboundedSender<Answers>,
    pub(super) checkpoint: mpsc::SyncSender<()>,
    pub(super) gauges: Arc<Gauges>,
    last: watch::Sender<u64>,
    pub(super) health: watch::Sender<Health>,
    metrics: Arc<Metrics>,
    pub(super) config: config::Outbox,
    dedupe: Dedupe,
    pub(super) page_size: u64,
    /// The position of the last durable event.
    position: u64,
    /// The oldest position that is kept; one past the last where none is.
    pub(super) oldest: u64,
    /// Up to here the history has served its time.
    pub(super) trim_to: u64,
    /// So little room is left that the history gives way, if it may.
    pub(super) is_crowded: bool,
    /// No event from here on may be trimmed: it is still to be tried again.
    first_deferred: u64,
    pub(super) log_pages: i64,
    /// What `PRAGMA synchronous` says now.
    pub(super) sync: Option<Sync>,
    /// What the relay has settled and is not written yet.
    settlements: Arc<Mutex<Settlement>>,
    settled_at: Instant,
    /// Who waits for that to be written.
    flushes: Vec<oneshot::Sender<()>>,
    /// Bytes written since the last measuring.
    pub(super) unmeasured: u64,
    warned_of_quarantine: bool,
}

/// Starts the threads of an outbox whose lock is held.
pub(super) fn start(
    config: &config::Outbox,
    max_queued: usize,
    metrics: Arc<Metrics>,
    lock: File,
) -> Result<(Outbox, Workers), OpenError> {
    let path = &config.path;
    let connection = schema::open_for_writing(path)?;
    let checkpoints = schema::open_for_checkpoints(path)?;
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, error);

    let (commands, received) = mpsc::channel();
    let (answers, mut to_answer) = tokio::sync::mpsc::unbounded_channel::<Answers>();
    let (checkpoint, checkpoint_due) = mpsc::sync_channel(1);
    let gauges = Arc::new(Gauges {
        queued: 0.into(),
        settled_through: 0.into(),
        deferred: 0.into(),
        dead_letters: 0.into(),
        quarantined: 0.into(),
        bytes: 0.into(),
    });
    let keep = config.history.max(config.dedupe_window);
    let mut writer = Writer {
        page_size: schema::pragma::<i64>(&connection, "page_size")
            .map_err(unusable)?
            .unsigned_abs(),
        connection,
        commands: received,
        answers,
        checkpoint,
        gauges: gauges.clone(),
        last: watch::Sender::new(0),
        health: watch::Sender::new(Health::Taking),
        metrics,
        config: config.clone(),
        dedupe: Dedupe::new(
            milliseconds(config.dedupe_window),
            milliseconds(keep),
            usize::try_from(config.history_events).unwrap_or(usize::MAX),
        ),
        position: 0,
        oldest: 1,
        trim_to: 0,
        is_crowded: false,
        first_deferred: u64::MAX,
        log_pages: 0,
        sync: None,
        settlements: Arc::default(),
        settled_at: Instant::now(),
        flushes: Vec::new(),
        unmeasured: 0,
        warned_of_quarantine: false,
    };
    writer.load().map_err(unusable)?;

    let outbox = Outbox {
        commands: commands.clone(),
        gauges,
        settlements: writer.settlements.clone(),
        last: writer.last.subscribe(),
        health: writer.health.subscribe(),
        max_queued,
        path: path.as_path().into(),
    };
    tokio::spawn(async move {
        while let Some(answers) = to_answer.recv().await {
            for (waiter, outcome) in answers {
                let _ = waiter.send(outcome); // the client may have hung up; its event is safe
            }
        }
    });
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| OpenError::unusable(path, format!("no thread to write it: {error}")))
    };
    let failed = commands.clone();
    let workers = Workers {
        writer: spawn("outbox-writer", Box::new(move || writer.run()))?,
        checkpointer: spawn(
            "outbox-check",
            Box::new(move || run_checkpoints(&checkpoints, &checkpoint_due, &failed)),
        )?,
        commands,
        _lock: lock,
    };
    Ok((outbox, workers))
}

/// What a failed transaction means.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may go better later, and nothing is harmed.
    Refused(Refusal),
    /// Nothing that this process believes about the file is sure any more.
    Broken(String),
}

impl Trouble {
    /// Of what can as well be done at the next occasion: only what is broken for good is an error.
    fn tolerate(result: rusqlite::Result<()>) -> Result<(), String> {
        match result.map_err(|error| Trouble::of(&error)) {
            Ok(()) | Err(Trouble::Refused(_)) => Ok(()),
            Err(Trouble::Broken(reason)) => Err(reason),
        }
    }

    pub(super) fn of(error: &rusqlite::Error) -> Self {
        let Some(failure) = error.sqlite_error() else {
            return Trouble::Broken(error.to_string());
        };
        match failure.code {
            ErrorCode::DiskFull => Trouble::Refused(Refusal::DiskFull),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                Trouble::Refused(Refusal::Locked)
            }
            // The log's index could not grow: the disk is full there, too.
            _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => {
                Trouble::Refused(Refusal::DiskFull)
            }
            _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC => {
                Trouble::Broken(format!("a sync failed: {error}"))
            }
            _ => Trouble::Broken(error.to_string()),
        }
    }
}

/// A batch sorted by what is to be done.
#[derive(Default)]
struct Batch {
    appends: Vec<(Record, Waiter)>,
    misfits: Vec<(Misfit, Waiter)>,
    flushes: Vec<oneshot::Sender<()>>,
    settlement: Option<Settlement>,
    poison: Option<String>,
    close: bool,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.misfits.is_empty() && self.settlement.is_none()
    }

    fn add(&mut self, command: Command) {
        match command {
            Command::Append(record, waiter) => self.appends.push((record, waiter)),
            Command::Quarantine(misfit, waiter) => self.misfits.push((misfit, waiter)),
            Command::Flush(written) => self.flushes.push(written),
            Command::Poison(reason) => self.poison = Some(reason),
            Command::Close => self.close = true,
        }
    }
}

/// What a transaction did, to be believed once it is committed.
struct Written {
    appends: Vec<Outcome>,
    misfits: Vec<Outcome>,
    accepted: u64,
    quarantined: u64,
    bytes: u64,
    trimmed_to: Option<u64>,
}

impl Writer {
    /// Learns from the file where the last run stopped.
    fn load(&mut self) -> rusqlite::Result<()> {
        let connection = &self.connection;
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let settled_through = number("SELECT settled_through FROM relay")?;
        let newest = number("SELECT coalesce(max(position), 0) FROM events")?;
        self.position = newest.max(settled_through);
        self.oldest = number("SELECT coalesce(min(position), 0) FROM events")?;
        if self.oldest == 0 {
            self.oldest = self.position + 1;
        }
        let gauges = &self.gauges;
        gauges.settled_through.store(settled_through, Relaxed);
        gauges.dead_letters.store(number("SELECT count(*) FROM dead_letters")?, Relaxed);
        gauges.quarantined.store(number("SELECT count(*) FROM quarantine")?, Relaxed);

        let from = self.position.saturating_sub(self.config.history_events);
        let sql = "SELECT first_id, accepted_at FROM ids WHERE position > ?1 ORDER BY position";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([from])?;
        while let Some(row) = rows.next()? {
            self.dedupe.remember(Uuid::from_bytes(row.get(0)?), row.get(1)?);
        }
        drop(rows);
        drop(statement);

        self.count_deferred()?;
        self.measure()?;
        self.last.send_replace(self.position);
        Ok(())
    }

    fn run(mut self) {
        let mut next_tick = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                if let Err(reason) = self.tick() {
                    return self.poison(&reason);
                }
            }
            // A full outbox wants trimming; a full disk would refuse it again and again.
            let health = self.health.borrow().clone();
            let can_trim = matches!(health, Health::Taking | Health::Refusing(Refusal::Full));
            let is_trimming = can_trim && self.trimmable() >= self.oldest;
            let wait = if is_trimming {
                Duration::ZERO
            } else if self.settled_through() < self.position {
                SETTLE_EVERY.min(next_tick - now)
            } else {
                next_tick - now
            };
            let mut batch = Batch::default();
            match self.commands.recv_timeout(wait) {
                Ok(command) => batch.add(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => batch.close = true,
            }
            self.gather(&mut batch);
            let close = batch.close;
            if let Err(reason) = self.commit(batch) {
                return self.poison(&reason);
            }
            if close {
                return self.close();
            }
        }
    }

    /// Adds whatever is queued. Where many are, it gives way a few times to those who are about to
    /// queue more: a larger batch costs one sync all the same. Measured on two busy cores at 64
    /// connections: batches half as large again, a tenth less CPU, half the p99.
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

    /// Writes one batch and answers it. An error is for good.
    fn commit(&mut self, mut batch: Batch) -> Result<(), String> {
        if let Some(reason) = batch.poison {
            let answers = Self::refuse_all(batch.appends, batch.misfits, Refusal::Poisoned);
            self.answer(answers);
            return Err(reason);
        }
        self.flushes.append(&mut batch.flushes);
        if self.settled_at.elapsed() >= SETTLE_EVERY || !self.flushes.is_empty() || batch.close {
            batch.settlement = self.take_settlement();
        }
        if batch.is_empty() && self.flushes.is_empty() && self.trimmable() < self.oldest {
            return Ok(());
        }
        let started = Instant::now();
        match self.write(&batch).map_err(|error| Trouble::of(&error)) {
            Ok(written) => {
                self.believe(&written);
                if let Some(settlement) = &batch.settlement {
                    Trouble::tolerate(self.believe_settled(settlement))?;
                }
                let appends =
                    batch.appends.into_iter().map(|(_, waiter)| waiter).zip(written.appends);
                let misfits =
                    batch.misfits.into_iter().map(|(_, waiter)| waiter).zip(written.misfits);
                self.answer(appends.chain(misfits).collect());
                for done in self.flushes.drain(..) {
                    let _ = done.send(()); // the relay may be gone already
                }
                if written.accepted > 0 {
                    self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                    self.metrics.commit_events.observe(written.accepted as f64);
                }
                self.unmeasured += written.bytes;
                if written.trimmed_to.is_some() && self.is_crowded {
                    Trouble::tolerate(self.measure())?; // to give up no more than is needed
                }
                if self.unmeasured >= MEASURE_EVERY {
                    Trouble::tolerate(self.look_after_log())?;
                }
                Ok(())
            }
            Err(Trouble::Refused(refusal)) => {
                self.dedupe.roll_back();
                self.sync = None;
                self.refuse(refusal);
                if let Some(settlement) = batch.settlement {
                    self.put_back(settlement);
                }
                self.answer(Self::refuse_all(batch.appends, batch.misfits, refusal));
                Ok(())
            }
            Err(Trouble::Broken(reason)) => {
                self.answer(Self::refuse_all(batch.appends, batch.misfits, Refusal::Poisoned));
                Err(reason)
            }
        }
    }

    /// One transaction, synced if it holds anything that is going to be answered OK.
    fn write(&mut self, batch: &Batch) -> rusqlite::Result<Written> {
        let takes = !(batch.appends.is_empty() && batch.misfits.is_empty());
        // Of a settlement that a power cut takes back, only a repeat comes; the next append's sync
        // covers it too.
        let sync = match self.config.sync {
            Sync::Full if !takes => Sync::Normal,
            configured => configured,
        };
        if self.sync != Some(sync) {
            self.connection.pragma_update(None, "synchronous", name_of(sync))?;
            self.sync = Some(sync);
        }

        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut room = self.config.max_bytes.saturating_sub(self.gauges.bytes.load(Relaxed));
        if self.log_pages > MAX_LOG_PAGES {
            room = 0;
        }
        let mut written = Written {
            appends: Vec::with_capacity(batch.appends.len()),
            misfits: Vec::with_capacity(batch.misfits.len()),
            accepted: 0,
            quarantined: 0,
            bytes: 0,
            trimmed_to: None,
        };
        {
            let mut insert_event = transaction.prepare_cached(
                "INSERT INTO events (position, accepted_at, event, traceparent)
                    VALUES (?1, ?2, ?3, ?4)",
            )?;
            let mut insert_id = transaction.prepare_cached(
                "INSERT INTO ids (position, first_id, accepted_at) VALUES (?1, ?2, ?3)",
            )?;
            for (record, _) in &batch.appends {
                let Record { id, accepted_at, event, traceparent } = record;
                let anew = match self.dedupe.seen(*id, *accepted_at) {
                    Seen::InsideWindow => {
                        written.appends.push(Ok(Receipt::Duplicate));
                        continue;
                    }
                    Seen::BeforeWindow => Some(recreated(record)),
                    Seen::Never => None,
                };
                let cost = event.len() as u64 + ROW_OVERHEAD;
                if cost > room {
                    written.appends.push(Err(Refusal::Full));
                    continue;
                }
                room -= cost;
                written.bytes += cost;
                let position = self.position + written.accepted + 1;
                insert_event.execute(params![
                    position,
                    accepted_at,
                    anew.as_ref().unwrap_or(event),
                    traceparent
                ])?;
                insert_id.execute(params![position, id.as_bytes(), accepted_at])?;
                self.dedupe.stage(*id, *accepted_at);
                written.accepted += 1;
                written.appends.push(Ok(Receipt::Accepted));
            }
        }
        for (misfit, _) in &batch.misfits {
            let cost = misfit.body.len() as u64 + ROW_OVERHEAD;
            let held = self.gauges.quarantined.load(Relaxed) + written.quarantined;
            let outcome = if held >= self.config.quarantine_events {
                Err(Refusal::QuarantineFull)
            } else if cost > room {
                Err(Refusal::Full)
            } else {
                insert_misfit(&transaction, misfit)?;
                room -= cost;
                written.bytes += cost;
                written.quarantined += 1;
                Ok(Receipt::Quarantined)
            };
            written.misfits.push(outcome);
        }
        if let Some(settlement) = &batch.settlement {
            settle(&transaction, settlement)?;
        }
        let trimmable = self.trimmable();
        if trimmable >= self.oldest {
            let to = trimmable.min(self.oldest + TRIM_AT_ONCE - 1);
            trim(&transaction, to)?;
            written.trimmed_to = Some(to);
        }
        transaction.commit()?;
        Ok(written)
    }

    /// Takes over what is committed.
    fn believe(&mut self, written: &Written) {
        self.dedupe.commit();
        self.position += written.accepted;
        if written.accepted > 0 {
            self.last.send_replace(self.position); // before any answer: who has one finds its event
        }
        self.gauges.bytes.fetch_add(written.bytes, Relaxed); // roughly, until it is measured
        self.gauges.quarantined.fetch_add(written.quarantined, Relaxed);
        if let Some(to) = written.trimmed_to {
            self.oldest = to + 1;
        }
        let duplicates = written.appends.iter().filter(|o| **o == Ok(Receipt::Duplicate)).count();
        self.metrics.count_many(CallbackOutcome::Accepted, written.accepted);
        self.metrics.count_many(CallbackOutcome::Duplicate, duplicates as u64);
        let refused =
            written.appends.iter().chain(&written.misfits).find_map(|outcome| outcome.err());
        match refused {
            Some(Refusal::QuarantineFull) => self.warn_of_full_quarantine(),
            Some(refusal) => self.refuse(refusal),
            // That a small event found room says little of a full outbox: the probe decides.
            None if *self.health.borrow() == Health::Refusing(Refusal::Full) => {}
            None if written.accepted > 0 => self.take(),
            None => {}
        }
    }

    fn believe_settled(&mut self, settlement: &Settlement) -> rusqlite::Result<()> {
        self.settled_at = Instant::now();
        self.gauges.settled_through.fetch_max(settlement.through, Relaxed);
        if !settlement.is_all_delivered() {
            self.gauges.dead_letters.fetch_add(settlement.refused.len() as u64, Relaxed);
            self.count_deferred()?;
        }
        Ok(())
    }

    /// What waits to be written, if anything does.
    fn take_settlement(&self) -> Option<Settlement> {
        let mut waiting = self.settlements.lock().unwrap_or_else(PoisonError::into_inner);
        let settlement = mem::take(&mut *waiting);
        (!settlement.changes_nothing(self.settled_through())).then_some(settlement)
    }

    /// Its transaction failed for want of room: it goes with a later one.
    fn put_back(&self, mut settlement: Settlement) {
        let mut waiting = self.settlements.lock().unwrap_or_else(PoisonError::into_inner);
        settlement.merge(mem::take(&mut *waiting));
        *waiting = settlement;
    }

    fn count_deferred(&mut self) -> rusqlite::Result<()> {
        let sql = "SELECT count(*), min(position) FROM deferred";
        let (count, first): (u64, Option<u64>) =
            self.connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.gauges.deferred.store(count, Relaxed);
        self.first_deferred = first.unwrap_or(u64::MAX);
        Ok(())
    }

    /// The watermark that is written.
    fn settled_through(&self) -> u64 {
        self.gauges.settled_through.load(Relaxed)
    }

    /// The last position that may go now: past its time, and settled.
    fn trimmable(&self) -> u64 {
        let settled = self.settled_through().min(self.first_deferred - 1);
        let too_many = self.position.saturating_sub(self.config.history_events);
        let crowded_out = if self.is_crowded { settled } else { 0 };
        self.trim_to.max(too_many).max(crowded_out).min(settled)
    }

    pub(super) fn take(&self) {
        let was_refusing = *self.health.borrow() != Health::Taking;
        if was_refusing {
            tracing::info!("the outbox takes callbacks again");
            self.health.send_replace(Health::Taking);
        }
    }

    pub(super) fn refuse(&self, refusal: Refusal) {
        if *self.health.borrow() == Health::Refusing(refusal) {
            return;
        }
        let path = self.config.path.display();
        match refusal {
            Refusal::Full => tracing::error!(
                %path, used = self.gauges.bytes.load(Relaxed), max_bytes = self.config.max_bytes,
                pending = self.position.saturating_sub(self.settled_through()),
                "the outbox is full, callbacks are answered 503: bring the sink back, shorten \
                 outbox.history, or raise outbox.max_bytes"
            ),
            Refusal::DiskFull => tracing::error!(
                %path, "the disk is full, callbacks are answered 503: make room, and taking resumes"
            ),
            _ => tracing::error!(
                %path, "another program holds the outbox locked, callbacks are answered 503: end it"
            ),
        }
        self.health.send_replace(Health::Refusing(refusal));
    }

    /// Said once a run: good callbacks are still taken, and the gauge `quarantined` shows it.
    fn warn_of_full_quarantine(&mut self) {
        if !self.warned_of_quarantine {
            self.warned_of_quarantine = true;
            tracing::error!(
                path = %self.config.path.display(), limit = self.config.quarantine_events,
                "the quarantine is full, malformed callbacks are answered 503 and not kept: look at \
                 `topic-bridge outbox list --quarantined`, or raise outbox.quarantine_events"
            );
        }
    }

    fn answer(&self, answers: Answers) {
        self.gauges.queued.fetch_sub(answers.len(), Relaxed);
        let _ = self.answers.send(answers); // the runtime is gone: so are the waiters
    }

    fn refuse_all(
        appends: Vec<(Record, Waiter)>,
        misfits: Vec<(Misfit, Waiter)>,
        refusal: Refusal,
    ) -> Answers {
        let appends = appends.into_iter().map(|(_, waiter)| waiter);
        let waiters = appends.chain(misfits.into_iter().map(|(_, waiter)| waiter));
        waiters.map(|waiter| (waiter, Err(refusal))).collect()
    }

    /// Says why, refuses whatever is queued, and ends. The file stays as it is for the next start.
    fn poison(self, reason: &str) {
        tracing::error!(
            path = %self.config.path.display(), reason,
            "the outbox failed and takes nothing more, for what is on the disk is not sure any more: \
             look after the disk, then start again"
        );
        self.health.send_replace(Health::Poisoned(reason.to_owned()));
        let mut rest = Batch::default();
        for command in self.commands.try_iter() {
            rest.add(command);
        }
        self.answer(Self::refuse_all(rest.appends, rest.misfits, Refusal::Poisoned));
    }

    fn close(self) {
        // Only saves the next start some reading; the log is as good as the file.
        let _ = checkpoint(&self.connection, "TRUNCATE");
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "the outbox was not closed cleanly; nothing is lost by that");
        }
    }
}

/// The event of a topic that was created anew, under its own id.
fn recreated(record: &Record) -> String {
    let id = event::recreated_id(record.id, record.accepted_at);
    let event = TopicCreated::decode(&record.event).expect("the ingress encoded this event");
    TopicCreated { id, ..event }.encode()
}

fn name_of(sync: Sync) -> &'static str {
    match sync {
        Sync::Full => "FULL",
        Sync::Normal => "NORMAL",
        Sync::Off => "OFF",
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
