//! The durable outbox. Its rules, each with a test of its name or near it:
//!
//! - **An OK means durable.** An append is answered after the commit that holds it was synced. Many
//!   waiters share one commit: whatever is queued when the writer turns round is its next batch.
//! - **The record is the writer's from the moment it is queued.** A waiter that goes away harms
//!   nothing; its event is still written and delivered.
//! - **One writer.** One named thread owns the only connection that writes; appends, settlements and
//!   housekeeping are its commands. Reads have connections of their own. No SQL on a tokio worker.
//! - **After a failed sync nothing is acknowledged again** until a restart: the page may be gone
//!   although the next sync says OK. The outbox is *poisoned*, and the process ends.
//! - **Opening makes durable what it recovers** before anything of it counts: who is told "seen before"
//!   after a crash can rely on it.
//! - **A full disk or a full outbox is not that.** It refuses, keeps what it has, and takes again when
//!   there is room.
//! - **Each row is checked when it is read.** One that a disk has altered becomes a dead letter, and the
//!   line goes on.
//! - **Times are compared by their distance**, by a clock that nobody sets.
//! - **Positions only grow.** They number the accepted events from 1 without a hole, and one is never
//!   given twice, so a reader that knows the last position it saw misses nothing.
//! - **One process per outbox**, by a lock on the file itself.
//!
//! What is in the file stands in `schema.rs`. Delivery is a watermark, `settled_through`, and a table
//! of the few events behind it that have to be tried again, each with a copy of its own: a million
//! delivered events cost one row, and the history can go whatever still waits.

mod batch;
mod config;
mod connection;
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
mod schema;
mod settlement;
mod start;
#[cfg(test)]
mod tests;
mod upkeep;
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

pub(crate) use config::{Config, Sync};
pub(crate) use health::Health;
pub(crate) use lists::{Kept, List, Status};
use lock::Lock;
pub(crate) use reader::{Deferred, Reader};
pub(crate) use row::{Damaged, Slot, Stored, position};
pub(crate) use settlement::{Again, Refused, Settlement};

/// Why the outbox cannot be read, and what helps.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ReadError(String);

pub(crate) type ReadResult<T> = Result<T, ReadError>;

/// An accepted event on its way in.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) accepted_at: Timestamp,
    /// With the id of the topic's first creation.
    pub(crate) event: Envelope,
    pub(crate) traceparent: Option<String>,
}

/// An authentic callback that could not be understood, with what is needed to try it again.
#[derive(Debug, Clone)]
pub(crate) struct Quarantined {
    pub(crate) sdk_app_id: u64,
    pub(crate) client_ip: Option<String>,
    pub(crate) client_platform: Option<String>,
    pub(crate) received_at: Timestamp,
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
}

/// Something is durable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Receipt {
    Accepted,
    /// The same event was accepted before, inside the window, and is durable.
    Duplicate,
    Quarantined,
}

/// Nothing was kept, and why.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("too many callbacks wait for the disk")]
    QueueFull,
    #[error("the outbox is full")]
    Full,
    #[error("the quarantine is full")]
    QuarantineFull,
    /// The log cannot be emptied for somebody who reads.
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
    /// Writes this, and the watermark, and says when it is done, however long that takes.
    Settle(Settlement, oneshot::Sender<()>),
    /// The checkpoint beside the commits has ended.
    Checkpointed,
    /// The checkpoints failed for this reason.
    Poison(String),
    Close,
    /// Does what the clock would have it do once a second.
    #[cfg(test)]
    Tick(oneshot::Sender<()>),
    /// These, in one batch.
    #[cfg(test)]
    Together(Vec<Command>),
    #[cfg(test)]
    Probe(probe::Probe, oneshot::Sender<probe::Rest>),
}

/// What others may know without asking the file.
#[derive(Default)]
struct Shared {
    /// Callbacks that the writer has not answered yet.
    queued: AtomicUsize,
    /// How far the line is settled, and how far that is written.
    settle_through: AtomicU64,
    settled_through: AtomicU64,
    deferred: AtomicU64,
    dead_letters: AtomicU64,
    quarantined: AtomicU64,
    bytes: AtomicU64,
    log_bytes: AtomicU64,
    /// Since when a commit is in progress (0: none is), how long the last one took, and from when on that
    /// is too long: milliseconds by the steady clock.
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

/// What is asked of the outbox beside its own configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Callbacks that wait for a commit.
    pub(crate) max_queued: usize,
    /// A commit that takes so long is too slow for whoever waits.
    pub(crate) slow: Duration,
    /// Whether delivered events go before their time when there is no room left. Not where they are
    /// the stream.
    pub(crate) history_gives_way: bool,
}

/// The threads behind the handle, and the lock. [`Workers::close`] ends them in order.
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
    /// runtime, whose task hands the answers out.
    pub(crate) fn open(
        config: &Config,
        limits: Limits,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<(Self, Workers), OpenError> {
        start::start(config, limits, metrics, clock)
    }

    /// Queues a record. The answer comes once it is durable, or is not going to be; dropping the
    /// receiver changes nothing about the record.
    pub(crate) fn append(&self, record: Record) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        self.queue(|waiter| Command::Append(record, waiter))
    }

    /// Queues a callback that was not understood, likewise.
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

    /// Everything in line is delivered up to this position, but for what was settled otherwise. It is
    /// written within a moment, with whatever else is; a crash before that delivers it once more.
    pub(crate) fn settle_through(&self, position: u64) {
        self.shared.settle_through.fetch_max(position, Ordering::Relaxed);
    }

    /// Records what is more than that. The receiver completes when it is written, with the watermark, and
    /// fails if the outbox has: until then nothing may be read that could be settled differently.
    pub(crate) fn settle(&self, settlement: Settlement) -> oneshot::Receiver<()> {
        let (written, receiver) = oneshot::channel();
        // A writer that is gone drops `written`, which the relay takes as the end.
        let _ = self.commands.send(Command::Settle(settlement, written));
        receiver
    }

    /// The position of the last durable event; changes wake whoever waits for new ones.
    pub(crate) fn last(&self) -> watch::Receiver<u64> {
        self.last.clone()
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Why callbacks are refused, if they are.
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

    /// The clock by which the outbox compares times.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A connection for reading, of its own.
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

    /// Events that are to be tried again by themselves.
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

    /// Does what is due by the clock, now.
    #[cfg(test)]
    pub(crate) async fn tick(&self) {
        let (done, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Tick(done));
        let _ = receiver.await; // a poisoned outbox does nothing more
    }
}

impl Workers {
    /// Writes what is queued, then closes the file and gives up the lock. Blocks.
    pub(crate) fn close(self) {
        let _ = self.commands.send(Command::Close); // a poisoned writer is gone already
        for thread in [self.writer, self.checkpointer] {
            if thread.join().is_err() {
                tracing::error!("a thread of the outbox panicked while it was closed");
            }
        }
        self.lock.release();
    }
}
