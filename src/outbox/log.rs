//! SQLite's write-ahead log and its checkpoints. A separate thread copies the log into the file alongside
//! the commits. The writer then copies the few pages that were added in the meantime, because only a
//! fully copied log restarts from its beginning.

use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};

use rusqlite::Connection;

use super::Command;
use super::health::StorageError;
use super::lock::readers;
use super::reserve::Reserve;

/// Uncopied pages at which a checkpoint starts; fewer for a small outbox.
const CHECKPOINT_PAGES: u64 = 1000;

/// The writer copies up to this many pages itself.
const FINISH_PAGES: u64 = 256;

/// At this many times `CHECKPOINT_PAGES` the writer copies everything itself: a checkpoint that runs
/// alongside a busy writer never quite catches up.
const FAR_BEHIND: u64 = 4;

/// Pages in the log, and how many of them are already in the file.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<(u64, u64)> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    let (pages, copied): (i64, i64) =
        statement.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))?;
    Ok((pages.max(0).cast_unsigned(), copied.max(0).cast_unsigned())) // -1: another checkpoint is running
}

/// Runs a checkpoint at each request, until the writer is gone. A panic in here poisons the outbox.
pub(super) fn run_checkpoints(
    connection: &Connection,
    due: &Receiver<()>,
    writer: &mpsc::Sender<Command>,
    reserve: &Reserve,
) {
    struct Watched<'w>(&'w mpsc::Sender<Command>);
    impl Drop for Watched<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let _ = self.0.send(Command::Poison("the checkpoint thread panicked".into()));
            }
        }
    }
    let watched = Watched(writer);
    while due.recv().is_ok() {
        let done =
            match checkpoint(connection, "PASSIVE").map_err(|e| StorageError::of(&e, reserve)) {
                Ok(_) | Err(StorageError::Refused(_)) => Command::Checkpointed, // the next one retries
                Err(StorageError::Broken(reason)) => Command::Poison(reason),
            };
        if watched.0.send(done).is_err() {
            return;
        }
    }
}

/// The log as the writer sees it.
pub(super) struct Log {
    due: SyncSender<()>,
    checkpoint_pages: u64,
    is_running: bool,
    is_held: bool,
    /// Pages that are not in the file yet.
    pub(super) behind: u64,
}

impl Log {
    /// `max_pages` is the limit of the whole outbox.
    pub(super) fn new(due: SyncSender<()>, max_pages: u64) -> Self {
        let checkpoint_pages = (max_pages / 16).clamp(16, CHECKPOINT_PAGES);
        Log { due, checkpoint_pages, is_running: false, is_held: false, behind: 0 }
    }

    #[cfg(test)]
    pub(super) fn is_checkpointing(&self) -> bool {
        self.is_running
    }

    /// How long the log usually gets.
    pub(super) fn max_pages(&self) -> u64 {
        FAR_BEHIND * self.checkpoint_pages
    }

    /// Measures the log, and starts copying it if it is time.
    pub(super) fn look_after(
        &mut self,
        connection: &Connection,
        path: &Path,
    ) -> rusqlite::Result<()> {
        self.measure(connection)?;
        let is_far_behind = self.behind >= self.max_pages();
        if is_far_behind && !self.is_held {
            self.finish(connection)?;
            if self.behind >= self.max_pages() {
                self.is_held = true;
                tracing::warn!(
                    path = %path.display(), pages = self.behind, readers = ?readers(path),
                    "a program reads the outbox in a transaction that it does not end: the log beside \
                     the file grows meanwhile, up to outbox.max_bytes; end it"
                );
            }
        } else if self.behind >= self.checkpoint_pages && !self.is_running {
            self.is_running = self.due.try_send(()).is_ok();
        }
        self.is_held &= is_far_behind;
        Ok(())
    }

    /// The thread is done. The writer copies the rest, if it is small and there is room for it.
    pub(super) fn checkpointed(
        &mut self,
        connection: &Connection,
        has_room: bool,
    ) -> rusqlite::Result<()> {
        self.is_running = false;
        self.measure(connection)?;
        if has_room && (1..=FINISH_PAGES).contains(&self.behind) {
            self.finish(connection)?;
        }
        Ok(())
    }

    /// Copies what is left, except what a reader still needs in the log.
    pub(super) fn finish(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        checkpoint(connection, "PASSIVE")?;
        self.measure(connection)
    }

    fn measure(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let (pages, copied) = checkpoint(connection, "NOOP")?;
        self.behind = pages.saturating_sub(copied);
        Ok(())
    }
}
