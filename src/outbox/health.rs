//! Whether the outbox accepts events, and what an SQLite error means for that.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rusqlite::{ErrorCode, ffi};
use tokio::sync::watch;

use super::lock::readers;
use super::reserve::Reserve;
use super::schema::explain;
use super::{Refusal, Shared};
use crate::time::Timestamp;

/// Whether the outbox accepts events.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Health {
    Taking,
    /// Refuses for now, and accepts again once the reason is gone; no restart needed.
    Refusing(Refusal),
    /// A sync failed or the file is damaged: nothing is acknowledged again before a restart.
    Poisoned(String),
}

/// What a failed statement means.
#[derive(Debug)]
pub(super) enum StorageError {
    /// It may succeed later; no harm is done.
    Refused(Refusal),
    /// The file can no longer be trusted.
    Broken(String),
}

impl StorageError {
    pub(super) fn of(error: &rusqlite::Error, reserve: &Reserve) -> Self {
        let Some(failure) = error.sqlite_error() else {
            return StorageError::Broken(error.to_string());
        };
        match (failure.code, failure.extended_code) {
            (ErrorCode::DiskFull, _) => StorageError::Refused(Refusal::DiskFull),
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => {
                StorageError::Refused(Refusal::Locked)
            }
            // The log's index could not grow: that means a full disk, too.
            (_, ffi::SQLITE_IOERR_SHMSIZE) => StorageError::Refused(Refusal::DiskFull),
            (_, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_TRUNCATE) if reserve.is_disk_full() => {
                StorageError::Refused(Refusal::DiskFull)
            }
            (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => {
                StorageError::Broken(format!("a sync failed: {error}"))
            }
            _ => StorageError::Broken(explain(error, reserve.outbox())),
        }
    }

    /// For work that can be left for the next attempt: only a broken outbox is an error.
    pub(super) fn tolerate(result: rusqlite::Result<()>, reserve: &Reserve) -> Result<(), String> {
        match result.map_err(|error| StorageError::of(&error, reserve)) {
            Ok(()) | Err(StorageError::Refused(_)) => Ok(()),
            Err(StorageError::Broken(reason)) => Err(reason),
        }
    }
}

/// The writer's end of the health state: logs each change.
pub(super) struct Condition {
    pub(super) health: watch::Sender<Health>,
    path: PathBuf,
    max_bytes: u64,
    warned_of_quarantine: bool,
}

impl Condition {
    pub(super) fn new(path: PathBuf, max_bytes: u64) -> Self {
        let health = watch::Sender::new(Health::Taking);
        Condition { health, path, max_bytes, warned_of_quarantine: false }
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        match &*self.health.borrow() {
            Health::Refusing(refusal) => Some(*refusal),
            _ => None,
        }
    }

    pub(super) fn take(&self) {
        if self.refusal().is_some() {
            tracing::info!("the outbox takes callbacks again");
            self.health.send_replace(Health::Taking);
        }
    }

    pub(super) fn refuse(&self, refusal: Refusal, shared: &Shared) {
        if self.refusal() == Some(refusal) {
            return;
        }
        let path = self.path.display();
        match refusal {
            Refusal::Full => tracing::error!(
                %path, used = shared.bytes.load(Relaxed), max_bytes = self.max_bytes,
                "the outbox is full, so callbacks are answered 503: bring the sink back, shorten \
                 outbox.history, or raise outbox.max_bytes"
            ),
            Refusal::LogHeld => tracing::error!(
                %path, log_bytes = shared.log_bytes.load(Relaxed), readers = ?readers(&self.path),
                "the outbox's log has grown to outbox.max_bytes, so callbacks are answered 503: a program \
                 (`sqlite3`, a backup) reads the outbox in a transaction that it does not end, and until \
                 then the log cannot be emptied: end that program, and callbacks are taken again"
            ),
            Refusal::DiskFull => tracing::error!(
                %path, "the disk is full or a quota is used up, so callbacks are answered 503: make room, and \
                 they are taken again"
            ),
            _ => tracing::error!(
                %path, "another program has locked the outbox, so callbacks are answered 503: end that program"
            ),
        }
        self.health.send_replace(Health::Refusing(refusal));
    }

    /// Logged once per run: valid callbacks are still accepted, and the gauge `quarantined` shows it.
    pub(super) fn warn_of_full_quarantine(&mut self, limit: u64) {
        if !self.warned_of_quarantine {
            self.warned_of_quarantine = true;
            tracing::error!(
                path = %self.path.display(), limit,
                "the quarantine is full, so malformed callbacks are answered 503 and not kept: look at \
                 `topic-bridge outbox list --quarantined`, or raise outbox.quarantine_events"
            );
        }
    }

    pub(super) fn poison(&self, reason: &str) {
        tracing::error!(
            path = %self.path.display(), reason,
            "the outbox failed and accepts nothing more, because its file can no longer be trusted: check the \
             disk, then start again"
        );
        self.health.send_replace(Health::Poisoned(reason.to_owned()));
    }
}

impl Shared {
    /// How long the commit in progress (or else the last one) has taken, if that is too long.
    pub(super) fn slow_commit(&self, now: Timestamp) -> Option<Duration> {
        let taken = self.longest_commit(now);
        (taken >= self.slow.load(Relaxed)).then(|| Duration::from_millis(taken))
    }

    /// Milliseconds that the commit in progress has taken, or the last one.
    pub(super) fn longest_commit(&self, now: Timestamp) -> u64 {
        let started = self.commit_started.load(Relaxed);
        let running = if started == 0 { 0 } else { now.as_millis().saturating_sub(started) };
        running.max(self.commit_took.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_refuses_for_now_or_breaks_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(&folder.path().join("outbox.db"));
        let sorted = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            match StorageError::of(&error, &reserve) {
                StorageError::Refused(refusal) => Some(refusal),
                StorageError::Broken(_) => None,
            }
        };
        for (code, expected) in [
            (ffi::SQLITE_FULL, Some(Refusal::DiskFull)),
            (ffi::SQLITE_IOERR_SHMSIZE, Some(Refusal::DiskFull)),
            (ffi::SQLITE_BUSY, Some(Refusal::Locked)),
            (ffi::SQLITE_LOCKED, Some(Refusal::Locked)),
            (ffi::SQLITE_IOERR_WRITE, None), // for there is room here
            (ffi::SQLITE_IOERR_FSYNC, None),
            (ffi::SQLITE_IOERR_READ, None),
            (ffi::SQLITE_CORRUPT, None),
            (ffi::SQLITE_NOTADB, None),
        ] {
            assert_eq!(sorted(code), expected, "{code}");
        }
    }
}
