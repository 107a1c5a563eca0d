//! What the writer does beside the batches: it lets the history go, gives space back, keeps the
//! write-ahead log short, and finds out whether a full disk has room again.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver};
use std::time::SystemTime;

use rusqlite::Connection;

use super::writer::{Trouble, Writer, milliseconds};
use super::{Command, Health, Refusal};
use crate::event;

/// Free pages that are kept for reuse before space is given back, and how many go back at a time.
const KEEP_FREE_PAGES: i64 = 2048;
const VACUUM_AT_ONCE: i64 = 1024;

/// Pages in the write-ahead log that start a checkpoint beside the commits…
const CHECKPOINT_PAGES: i64 = 1000;
/// …and those at which the writer finishes one itself, so that the log starts again from its
/// beginning: beside a busy writer a checkpoint never quite catches up.
const RESTART_PAGES: i64 = 16 * 1024;
/// A log this long means that some reader holds it open: no more is taken before it lets go.
pub(super) const MAX_LOG_PAGES: i64 = 4 * RESTART_PAGES;

/// Copies the log into the file beside the commits, until the writer is gone.
pub(super) fn run_checkpoints(
    connection: &Connection,
    due: &Receiver<()>,
    failed: &mpsc::Sender<Command>,
) {
    while due.recv().is_ok() {
        match checkpoint(connection, "PASSIVE").map_err(|error| Trouble::of(&error)) {
            Ok(_) | Err(Trouble::Refused(_)) => {} // the next one tries again
            Err(Trouble::Broken(reason)) => {
                let _ = failed.send(Command::Poison(reason));
                return;
            }
        }
    }
}

/// Pages in the log, and how many of them are in the file already.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<(i64, i64)> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    statement.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}

/// Percent of `outbox.max_bytes` in use at which delivered history begins to give way, and at which
/// it need not any more.
const CROWDED: u64 = 90;
const ENOUGH_ROOM: u64 = 80;

impl Writer {
    /// Checkpoints when it is time, and learns how large the file is.
    pub(super) fn look_after_log(&mut self) -> rusqlite::Result<()> {
        let (pages, copied) = checkpoint(&self.connection, "NOOP")?;
        self.log_pages = pages;
        if pages >= RESTART_PAGES {
            self.log_pages = checkpoint(&self.connection, "PASSIVE")?.0;
        } else if pages - copied >= CHECKPOINT_PAGES {
            let _ = self.checkpoint.try_send(()); // full: one is due already
        }
        self.measure()
    }

    pub(super) fn measure(&mut self) -> rusqlite::Result<()> {
        self.unmeasured = 0;
        let (pages, free) = self.pages()?;
        let used = u64::try_from(pages - free).unwrap_or(0) * self.page_size;
        self.gauges.bytes.store(used, Relaxed);
        if self.config.history_gives_way {
            let share = |percent| self.config.max_bytes / 100 * percent;
            let is_over = used > share(if self.is_crowded { ENOUGH_ROOM } else { CROWDED });
            if is_over && !self.is_crowded {
                tracing::warn!(
                    used,
                    max_bytes = self.config.max_bytes,
                    "little room is left in the outbox: delivered events go before outbox.history"
                );
            }
            self.is_crowded = is_over;
        }
        Ok(())
    }

    /// Pages of the file, and those of them that are free.
    fn pages(&self) -> rusqlite::Result<(i64, i64)> {
        let mut pages = self.connection.prepare_cached("PRAGMA page_count")?;
        let mut free = self.connection.prepare_cached("PRAGMA freelist_count")?;
        Ok((pages.query_row([], |row| row.get(0))?, free.query_row([], |row| row.get(0))?))
    }

    /// Once a second: what is due by the clock.
    pub(super) fn tick(&mut self) -> Result<(), String> {
        let result = self
            .expire()
            .and_then(|()| self.look_after_log())
            .and_then(|()| self.give_space_back())
            .and_then(|()| self.probe());
        match result.map_err(|error| Trouble::of(&error)) {
            Ok(()) => Ok(()),
            Err(Trouble::Refused(refusal)) => {
                self.sync = None;
                self.refuse(refusal);
                Ok(())
            }
            Err(Trouble::Broken(reason)) => Err(reason),
        }
    }

    /// Moves `trim_to` past the events that are older than the history's time.
    fn expire(&mut self) -> rusqlite::Result<()> {
        let now = event::since_epoch(SystemTime::now());
        let expired = now.saturating_sub(milliseconds(self.config.history));
        let sql = "SELECT position, accepted_at FROM ids WHERE position > ?1 ORDER BY position";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([self.trim_to.max(self.oldest - 1)])?;
        while let Some(row) = rows.next()? {
            if row.get::<_, u64>(1)? > expired {
                break;
            }
            self.trim_to = row.get(0)?;
        }
        Ok(())
    }

    /// Shrinks the file by a little when much of it is free.
    fn give_space_back(&mut self) -> rusqlite::Result<()> {
        let (pages, free) = self.pages()?;
        if free < KEEP_FREE_PAGES.max(pages / 4) {
            return Ok(());
        }
        let sql = format!("PRAGMA incremental_vacuum({VACUUM_AT_ONCE})");
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {} // a page a step
        Ok(())
    }

    /// While it refuses, finds out whether it could take again: nobody else will, once a load
    /// balancer has believed `/readyz`.
    fn probe(&mut self) -> rusqlite::Result<()> {
        let refusal = match &*self.health.borrow() {
            Health::Refusing(refusal) => *refusal,
            _ => return Ok(()),
        };
        let has_room = match refusal {
            Refusal::Full => {
                self.log_pages = checkpoint(&self.connection, "PASSIVE")?.0;
                let is_log_short = self.log_pages <= MAX_LOG_PAGES;
                let used = self.gauges.bytes.load(Relaxed);
                is_log_short && used + used / 100 < self.config.max_bytes
            }
            _ => {
                let sql = "UPDATE probe SET filler = randomblob(?1)";
                self.connection.execute(sql, [64 * 1024])?;
                self.connection.execute(sql, [0])?;
                true
            }
        };
        if has_room {
            self.take();
        }
        Ok(())
    }
}
