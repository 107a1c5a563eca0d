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
//! - **A full disk or a full outbox is not that.** It refuses, keeps what it has, and takes again when
//!   there is room.
//! - **Positions only grow.** They number the accepted events from 1 without a hole, and one is never
//!   given twice, so a reader that knows the last position it saw misses nothing.
//! - **One process per outbox**, by a lock on a file beside it.
//!
//! What is in the file stands in `schema.rs`. Delivery is a watermark, `settled_through`, and a table
//! of the few events behind it that have to be tried again: a million delivered events cost one row.

mod dedupe;
mod reader;
mod schema;
mod statements;
#[cfg(test)]
mod tests;
mod upkeep;
mod writer;

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::config;
use crate::metrics::Metrics;

pub(crate) use reader::{Deferred, Kept, List, Reader, Status, Stored};

/// What a read of the outbox returns.
pub(crate) type ReadResult<T> = rusqlite::Result<T>;

/// An accepted event on its way in. Times are in milliseconds since the epoch.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: Uuid,
    pub(crate) accepted_at: u64,
    /// The encoded CloudEvent.
    pub(crate) event: String,
    pub(crate) traceparent: Option<String>,
}

/// An authentic callback that could not be understood, with what is needed to try it again.
#[derive(Debug, Clone)]
pub(crate) struct Misfit {
    pub(crate) sdk_app_id: u64,
    pub(crate) client_ip: Option<String>,
    pub(crate) client_platform: Option<String>,
    pub(crate) received_at: u64,
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
    #[error("the disk is full")]
    DiskFull,
    #[error("another program holds the outbox locked")]
    Locked,
    #[error("the outbox has failed")]
    Poisoned,
}

pub(crate) type Outcome = Result<Receipt, Refusal>;
type Waiter = oneshot::Sender<Outcome>;

/// What became of a batch of events. Everything up to `through` is settled but for `again`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Settlement {
    pub(crate) through: u64,
    pub(crate) again: Vec<Again>,
    /// Positions that had been deferred and are delivered now.
    pub(crate) delivered_at_last: Vec<u64>,
    pub(crate) refused: Vec<Refused>,
}

impl Settlement {
    fn merge(&mut self, later: Settlement) {
        self.through = self.through.max(later.through);
        self.again.extend(later.again);
        self.delivered_at_last.extend(later.delivered_at_last);
        self.refused.extend(later.refused);
    }

    fn changes_nothing(&self, settled_through: u64) -> bool {
        self.through <= settled_through && self.is_all_delivered()
    }

    /// Whether it is about events in line alone, each of them delivered.
    pub(crate) fn is_all_delivered(&self) -> bool {
        self.again.is_empty() && self.delivered_at_last.is_empty() && self.refused.is_empty()
    }
}

/// An event that is to be tried once more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Again {
    pub(crate) position: u64,
    pub(crate) attempts: u32,
    /// Milliseconds since the epoch.
    pub(crate) not_before: u64,
    pub(crate) reason: String,
}

/// An event that the sink will never take: it becomes a dead letter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub(crate) position: u64,
    /// Milliseconds since the epoch.
    pub(crate) at: u64,
    pub(crate) reason: String,
}

enum Command {
    Append(Record, Waiter),
    Quarantine(Misfit, Waiter),
    /// Writes the settlements that are waiting, and says when it is done.
    Flush(oneshot::Sender<()>),
    /// The checkpoints failed for this reason.
    Poison(String),
    Close,
}

/// Whether the outbox takes events.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Health {
    Taking,
    /// It refuses for now, and takes again by itself when the reason is gone.
    Refusing(Refusal),
    /// A sync failed or the file is damaged: nothing is acknowledged again before a restart.
    Poisoned(String),
}

/// What others may know without asking the file.
pub(crate) struct Gauges {
    /// Appends and misfits that the writer has not answered yet.
    queued: AtomicUsize,
    settled_through: AtomicU64,
    deferred: AtomicU64,
    dead_letters: AtomicU64,
    quarantined: AtomicU64,
    bytes: AtomicU64,
}

/// The handle: cheap to clone, safe to drop.
#[derive(Clone)]
pub(crate) struct Outbox {
    commands: mpsc::Sender<Command>,
    gauges: Arc<Gauges>,
    /// What the writer has not written yet.
    settlements: Arc<Mutex<Settlement>>,
    last: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
    max_queued: usize,
    path: Arc<Path>,
}

/// The threads behind the handle, and the lock. [`Workers::close`] ends them in order.
pub(crate) struct Workers {
    commands: mpsc::Sender<Command>,
    writer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
    _lock: File,
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
    /// Opens or creates the file, takes its lock, and starts its threads. `max_queued` bounds the
    /// callbacks that wait for a commit. Must be called inside a tokio runtime, whose task hands the
    /// answers out.
    pub(crate) fn open(
        config: &config::Outbox,
        max_queued: usize,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Workers), OpenError> {
        let lock = lock(&config.path)?;
        writer::start(config, max_queued, metrics, lock)
    }

    /// Queues a record. The answer comes once it is durable, or is not going to be; dropping the
    /// receiver changes nothing about the record.
    pub(crate) fn append(&self, record: Record) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        self.queue(|waiter| Command::Append(record, waiter))
    }

    /// Queues a misfit, likewise.
    pub(crate) fn quarantine(&self, misfit: Misfit) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        self.queue(|waiter| Command::Quarantine(misfit, waiter))
    }

    fn queue(
        &self,
        command: impl FnOnce(Waiter) -> Command,
    ) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        if self.gauges.queued.fetch_add(1, Ordering::Relaxed) >= self.max_queued {
            self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::QueueFull);
        }
        let (waiter, answer) = oneshot::channel();
        self.commands.send(command(waiter)).map_err(|_| Refusal::Poisoned)?;
        Ok(answer)
    }

    /// Records what became of a batch. It is written within a moment, with whatever else is; a crash
    /// before that delivers the batch once more.
    pub(crate) fn settle(&self, settlement: Settlement) {
        let mut waiting = self.settlements.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.merge(settlement);
    }

    /// Has the settlements so far written. The receiver fails if the outbox has.
    pub(crate) fn flush(&self) -> oneshot::Receiver<()> {
        let (written, receiver) = oneshot::channel();
        // A writer that is gone drops `written`, which the relay takes as the end.
        let _ = self.commands.send(Command::Flush(written));
        receiver
    }

    /// The position of the last durable event; changes wake whoever waits for new ones.
    pub(crate) fn last(&self) -> watch::Receiver<u64> {
        self.last.clone()
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// A connection for reading, of its own.
    pub(crate) fn reader(&self) -> Result<Reader, OpenError> {
        Reader::open(&self.path)
    }

    pub(crate) fn settled_through(&self) -> u64 {
        self.gauges.settled_through.load(Ordering::Relaxed)
    }

    /// Events that are durable and not yet delivered or refused.
    pub(crate) fn pending(&self) -> u64 {
        let last = *self.last.borrow();
        last.saturating_sub(self.settled_through()) + self.deferred()
    }

    /// Events that are to be tried again by themselves.
    pub(crate) fn deferred(&self) -> u64 {
        self.gauges.deferred.load(Ordering::Relaxed)
    }

    pub(crate) fn dead_letters(&self) -> u64 {
        self.gauges.dead_letters.load(Ordering::Relaxed)
    }

    pub(crate) fn quarantined(&self) -> u64 {
        self.gauges.quarantined.load(Ordering::Relaxed)
    }

    /// Bytes in use, as `outbox.max_bytes` counts them.
    pub(crate) fn bytes(&self) -> u64 {
        self.gauges.bytes.load(Ordering::Relaxed)
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
    }
}

/// Takes the lock beside the outbox, and leaves this process's id in it for whoever comes second.
fn lock(path: &Path) -> Result<File, OpenError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory.filter(|directory| !directory.is_dir()) {
        let reason = format!("there is no directory {}", directory.display());
        return Err(OpenError::unusable(path, reason));
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let unusable = |error: std::io::Error| {
        OpenError::unusable(path, format!("{}: {error}", lock_path.display()))
    };
    let mut options = File::options();
    let mut file = options
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&lock_path)
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder); // only for the message
            let holder = holder.trim().parse::<u32>();
            let holder = holder.map(|pid| format!(" (process {pid})")).unwrap_or_default();
            return Err(OpenError::InUse { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    // The id is a courtesy: on a full disk the bridge must still start.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}
