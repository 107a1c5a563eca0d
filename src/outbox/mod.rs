//! The durable outbox. Its rules, each with a test of that name or a similar one:
//!
//! - **An OK means durable.** An append is answered after the commit that holds it was synced. Many
//!   waiters share one commit: whatever is queued when the writer becomes free is its next batch.
//! - **The record is the writer's from the moment it is queued.** A waiter that goes away does no harm:
//!   its event is still written and delivered.
//! - **One writer.** One named thread owns the only connection that writes; appends, settlements and
//!   housekeeping are its commands. Readers have their own connections. No SQL on a tokio worker.
//! - **After a failed sync nothing is acknowledged again** until a restart: the page may be lost even if
//!   the next sync succeeds. The outbox is *poisoned*, and the process ends.
//! - **Opening makes durable what it recovers** before any of it counts: a client that is told "seen
//!   before" after a crash can rely on it.
//! - **A full disk or a full outbox does not poison it.** The outbox refuses callbacks, keeps what it
//!   has, and accepts again when there is room.
//! - **Each row is checked when it is read.** One that the disk has altered becomes a dead letter, and
//!   the queue moves on.
//! - **Times are compared by their distance**, on a clock that nobody sets.
//! - **Positions only grow.** They number the accepted events from 1 without a gap, and none is ever
//!   reused, so a reader that knows the last position it saw misses nothing.
//! - **One process per outbox**, enforced by a lock on the file itself.
//!
//! The tables are described in `schema.rs`. Delivery is a watermark, `settled_through`, and a table of
//! the few events behind it that have to be tried again, each as a copy: a million delivered events cost
//! one row, and the history can be removed no matter what is still waiting.

mod acts;
mod batch;
mod check;
mod config;
mod confirmations;
mod connection;
#[cfg(test)]
mod damage;
#[cfg(test)]
pub(crate) mod fixtures;
mod health;
mod history;
mod ids;
mod lists;
mod lock;
mod log;
mod migrate;
#[cfg(test)]
pub(crate) mod probe;
mod reader;
mod recovery;
mod reserve;
mod row;
mod salvage;
mod schema;
mod settlement;
mod sound;
mod start;
#[cfg(test)]
mod tests;
mod upkeep;
mod walk;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::message::Envelope;
use crate::metrics::Metrics;
use crate::time::{Clock, Timestamp};

pub(crate) use acts::{Act, Filter, Import, Of, Order, Tally};
pub(crate) use check::{Report, check};
pub(crate) use config::{Config, Sync};
use confirmations::Confirmations;
pub(crate) use health::Health;
pub(crate) use lists::{Kept, List, Status};
use lock::Lock;
pub(crate) use lock::identity_of as identity;
pub(crate) use reader::{Deferred, Reader};
pub(crate) use row::{Damaged, Slot, Stored, position};
pub(crate) use salvage::{Salvaged, salvage};
pub(crate) use settlement::{Again, Refused, Settlement};

/// The version of the SQLite that is built in.
pub(crate) fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// Why the outbox cannot be read, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ReadError(String);

pub(crate) type ReadResult<T> = Result<T, ReadError>;

/// An accepted event on its way in.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) accepted_at: Timestamp,
    /// Carries the id of the topic's first creation.
    pub(crate) event: Envelope,
    pub(crate) traceparent: Option<String>,
    /// Completes when the event is delivered, and fails if it never will be. Whoever waits for it also counts
    /// the callback, which the outbox does otherwise.
    pub(crate) confirm: Option<oneshot::Sender<()>>,
}

/// An authentic callback that could not be understood, with everything needed to try it again.
#[derive(Debug, Clone)]
pub(crate) struct Quarantined {
    pub(crate) sdk_app_id: u64,
    pub(crate) client_ip: Option<String>,
    pub(crate) client_platform: Option<String>,
    pub(crate) received_at: Timestamp,
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
}

/// What was made durable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Receipt {
    Accepted,
    /// The same event was accepted before, inside the window, and is durable.
    Duplicate,
    Quarantined,
}

/// Why nothing was kept.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("too many callbacks wait for the disk")]
    QueueFull,
    #[error("the outbox is full")]
    Full,
    #[error("the quarantine is full")]
    QuarantineFull,
    /// The log cannot be emptied because a program is reading it.
    #[error("a program reads the outbox in a transaction that it does not end")]
    LogHeld,
    #[error("the disk is full")]
    DiskFull,
    #[error("another program has locked the outbox")]
    Locked,
    #[error("the outbox has failed")]
    Poisoned,
}

pub(crate) type Outcome = Result<Receipt, Refusal>;
type Waiter = oneshot::Sender<Outcome>;

enum Command {
    Append(Record, Waiter),
    Quarantine(Quarantined, Waiter),
    /// Writes the settlement and the watermark, and reports when that is done, however long it takes.
    Settle(Settlement, oneshot::Sender<()>),
    /// A part of what an operator has ordered.
    Step(acts::Asked),
    /// The checkpoint thread has finished a checkpoint.
    Checkpointed,
    /// The checkpoint thread failed for this reason.
    Poison(String),
    Close,
    /// Runs the once-a-second work now.
    #[cfg(test)]
    Tick(oneshot::Sender<()>),
    /// All of these in one batch.
    #[cfg(test)]
    Together(Vec<Command>),
    #[cfg(test)]
    Probe(probe::Probe, oneshot::Sender<probe::Rest>),
}

/// State that other threads may read without querying the file.
#[derive(Default)]
struct Shared {
    /// Callbacks that the writer has not answered yet.
    queued: AtomicUsize,
    /// How far the queue is settled, and how much of that is written.
    settle_through: AtomicU64,
    settled_through: AtomicU64,
    deferred: AtomicU64,
    dead_letters: AtomicU64,
    quarantined: AtomicU64,
    bytes: AtomicU64,
    log_bytes: AtomicU64,
    confirmations: Confirmations,
    /// When the commit in progress started (0: none), how long the last one took, and from when on a
    /// commit is too slow: milliseconds on the steady clock.
    commit_started: AtomicU64,
    commit_took: AtomicU64,
    slow: AtomicU64,
}

/// The handle: cheap to clone, safe to drop.
#[derive(Clone)]
pub(crate) struct Outbox {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    last: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
    max_queued: usize,
    clock: Clock,
    lock: Arc<Lock>,
}

/// Limits that come from outside the outbox's own configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most callbacks that may wait for a commit.
    pub(crate) max_queued: usize,
    /// A commit that takes this long is too slow for the clients that wait.
    pub(crate) slow: Duration,
    /// Whether delivered events may be removed early when space runs out. Not allowed when the outbox
    /// itself is the stream.
    pub(crate) history_gives_way: bool,
}

/// The threads behind the handle, and the lock. [`Workers::close`] stops them in order.
pub(crate) struct Workers {
    commands: mpsc::Sender<Command>,
    writer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
    lock: Arc<Lock>,
}

/// Why an outbox cannot be opened. The texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(
        "another topic-bridge{holder} uses the outbox {path}: stop it, or give this one an \
         outbox.path of its own"
    )]
    InUse { path: PathBuf, holder: String },
    #[error("cannot open the outbox {path}: {reason}")]
    Unusable { path: PathBuf, reason: String },
    #[error(
        "the outbox {path} has schema version {found}, this program knows up to {known}: it was \
         written by a newer topic-bridge, start that one"
    )]
    TooNew { path: PathBuf, found: i64, known: i64 },
}

impl OpenError {
    fn unusable(path: &Path, reason: impl ToString) -> Self {
        OpenError::Unusable { path: path.to_owned(), reason: reason.to_string() }
    }
}

impl Outbox {
    /// Opens or creates the file, takes its lock, and starts its threads. Must be called inside a tokio
    /// runtime: one of its tasks delivers the answers.
    pub(crate) fn open(
        config: &Config,
        limits: Limits,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<(Self, Workers), OpenError> {
        start::start(config, limits, metrics, clock)
    }

    /// Queues a record. The answer comes once it is durable or has been refused; dropping the receiver
    /// does not affect the record.
    pub(crate) fn append(&self, record: Record) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        self.queue(|waiter| Command::Append(record, waiter))
    }

    /// Queues a callback that was not understood, in the same way.
    pub(crate) fn quarantine(
        &self,
        callback: Quarantined,
    ) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        self.queue(|waiter| Command::Quarantine(callback, waiter))
    }

    fn queue(
        &self,
        command: impl FnOnce(Waiter) -> Command,
    ) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        if self.shared.queued.fetch_add(1, Ordering::Relaxed) >= self.max_queued {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::QueueFull);
        }
        let (waiter, answer) = oneshot::channel();
        self.commands.send(command(waiter)).map_err(|_| Refusal::Poisoned)?;
        Ok(answer)
    }

    /// Everything in the queue up to this position is delivered, except what was settled differently.
    /// Written shortly afterwards together with other changes; a crash before that causes one more
    /// delivery.
    pub(crate) fn settle_through(&self, position: u64) {
        self.shared.settle_through.fetch_max(position, Ordering::Relaxed);
    }

    /// Records every other outcome. The receiver completes when this and the watermark are written, and
    /// fails if the outbox fails. Until then nothing may be read that could be settled differently.
    pub(crate) fn settle(&self, settlement: Settlement) -> oneshot::Receiver<()> {
        let (written, receiver) = oneshot::channel();
        // If the writer is gone, `written` is dropped, which the relay takes as the end.
        let _ = self.commands.send(Command::Settle(settlement, written));
        receiver
    }

    /// The broker has confirmed the event at this position: tells who waits for that.
    pub(crate) fn confirm(&self, position: u64) {
        self.shared.confirmations.settle(position, true);
    }

    /// The event at this position will not be delivered.
    pub(crate) fn give_up(&self, position: u64) {
        self.shared.confirmations.settle(position, false);
    }

    /// The position of the last durable event; a change wakes those who wait for new events.
    pub(crate) fn last(&self) -> watch::Receiver<u64> {
        self.last.clone()
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Why callbacks are being refused, if they are.
    pub(crate) fn refuses(&self) -> Option<String> {
        match &*self.health.borrow() {
            Health::Refusing(refusal) => return Some(refusal.to_string()),
            Health::Poisoned(reason) => return Some(reason.clone()),
            Health::Taking => {}
        }
        let taken = self.shared.slow_commit(self.clock.steady())?;
        Some(format!(
            "a commit has taken {taken:?}, so callbacks are answered 503: is the disk overloaded?"
        ))
    }

    /// How long the commit in progress has taken, or the last one, whichever is longer.
    pub(crate) fn longest_commit(&self) -> Duration {
        Duration::from_millis(self.shared.longest_commit(self.clock.steady()))
    }

    /// The clock by which the outbox compares times.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn path(&self) -> &Path {
        self.lock.path()
    }

    /// A new connection for reading.
    pub(crate) fn reader(&self) -> Result<Reader, OpenError> {
        Reader::beside(&self.lock)
    }

    pub(crate) fn settled_through(&self) -> u64 {
        self.shared.settled_through.load(Ordering::Relaxed)
    }

    /// Events that are durable and not yet delivered or refused.
    pub(crate) fn pending(&self) -> u64 {
        let last = *self.last.borrow();
        last.saturating_sub(self.settled_through()) + self.deferred()
    }

    /// Events that will be retried individually.
    pub(crate) fn deferred(&self) -> u64 {
        self.shared.deferred.load(Ordering::Relaxed)
    }

    pub(crate) fn dead_letters(&self) -> u64 {
        self.shared.dead_letters.load(Ordering::Relaxed)
    }

    pub(crate) fn quarantined(&self) -> u64 {
        self.shared.quarantined.load(Ordering::Relaxed)
    }

    /// Bytes in use, as `outbox.max_bytes` counts them.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Runs the once-a-second work now.
    #[cfg(test)]
    pub(crate) async fn tick(&self) {
        let (done, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Tick(done));
        let _ = receiver.await; // a poisoned outbox does nothing more
    }
}

impl Workers {
    /// Writes what is queued, then closes the file and releases the lock. Blocks.
    pub(crate) fn close(self) {
        let _ = self.commands.send(Command::Close); // a poisoned writer is already gone
        for thread in [self.writer, self.checkpointer] {
            if thread.join().is_err() {
                tracing::error!("a thread of the outbox panicked while it was closed");
            }
        }
        self.lock.release();
    }
}
