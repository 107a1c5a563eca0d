//! Reading the outbox on separate connections: for the relay, for the event stream, and for an operator's
//! command, with or without a running bridge. Reads are short, so that none of them holds up the
//! write-ahead log.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, params};
use tokio::sync::Semaphore;

use super::lock::Lock;
use super::row::{COLUMNS, Damaged, Slot, Stored, position};
use super::schema::explain;
use super::{OpenError, ReadError, ReadResult, connection};
use crate::time::Timestamp;

/// A page of events holds no more bytes than this (but at least one event), whatever the limit on their
/// number.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// At most so many missing events are reported at a time.
const MAX_MISSING: usize = 1000;

fn bytes_of(slots: &[Slot]) -> usize {
    slots.iter().flatten().map(|stored| stored.event.data.len()).sum()
}

fn missing(position: u64) -> Slot {
    let reason = "the stored event is missing: the disk has lost or altered it, check the disk, and see \
                  `topic-bridge outbox check`";
    Err(Damaged { position, reason: reason.into() })
}

/// An event that is to be retried.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deferred {
    pub(crate) slot: Slot,
    /// How often it has been tried so far.
    pub(crate) attempts: u32,
}

/// Clones share one connection, one read at a time.
#[derive(Clone)]
pub(crate) struct Reader {
    connection: Arc<Mutex<Connection>>,
    /// Those that wait for their read wait here, and not each on a thread.
    turn: Arc<Semaphore>,
    /// Dropped after the connection: see `lock.rs`.
    _lock: Option<Arc<Lock>>,
}

impl Reader {
    /// For other processes; a bridge may or may not be running.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self::of(connection::open_for_reading(path)?, None))
    }

    /// For use inside the bridge itself.
    pub(super) fn beside(lock: &Arc<Lock>) -> Result<Self, OpenError> {
        Ok(Self::of(connection::open_for_reading(lock.path())?, Some(lock.clone())))
    }

    fn of(connection: Connection, lock: Option<Arc<Lock>>) -> Self {
        let connection = Arc::new(Mutex::new(connection));
        Reader { connection, turn: Arc::new(Semaphore::new(1)), _lock: lock }
    }

    /// Runs one read on a blocking thread, in turn.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reading) -> rusqlite::Result<T> + Send + 'static,
    ) -> ReadResult<T> {
        let turn = self.turn.clone().acquire_owned().await.expect("it is never closed");
        let reader = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn; // until the read has ended, even if whoever asked is gone
            reader.run_here(read)
        });
        read.await.expect("a read does not panic, and is awaited before the runtime ends")
    }

    /// Runs one read on this thread.
    pub(crate) fn run_here<T>(
        &self,
        read: impl FnOnce(&Reading) -> rusqlite::Result<T>,
    ) -> ReadResult<T> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        read(&Reading { connection: &connection }).map_err(|error| {
            let path = connection.path().unwrap_or_default();
            ReadError(explain(&error, Path::new(path)))
        })
    }
}

/// The reads themselves; those for the operator are in `lists.rs`.
pub(crate) struct Reading<'c> {
    pub(super) connection: &'c Connection,
}

impl Reading<'_> {
    /// At most `limit` events after a position, in order.
    pub(crate) fn after(&self, position: u64, limit: usize) -> rusqlite::Result<Vec<Slot>> {
        let (mut slots, mut bytes) = (Vec::new(), 0);
        self.each_after(position, limit, |slot| {
            bytes += slot.as_ref().map_or(0, |stored| stored.event.data.len());
            slots.push(slot);
            if bytes < MAX_PAGE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(slots)
    }

    /// The same for the relay, which knows the `last` position there is: what is missing on the way to it is
    /// damaged, as positions have no gaps.
    pub(crate) fn line(&self, after: u64, last: u64, limit: usize) -> rusqlite::Result<Vec<Slot>> {
        let found = self.after(after, limit)?;
        // Unless it ends in the middle because it holds as much as a page may.
        let is_whole = found.len() < limit && bytes_of(&found) < MAX_PAGE_BYTES;
        let mut slots = Vec::with_capacity(found.len());
        let mut next = after + 1;
        for slot in found {
            let at = position(&slot);
            if at < next {
                continue; // its position is damaged: what should be there is missing
            }
            slots.extend((next..at).take(MAX_MISSING).map(missing));
            if at - next > MAX_MISSING as u64 {
                return Ok(slots);
            }
            next = at + 1;
            slots.push(slot);
        }
        if slots.is_empty() && next <= last {
            slots.push(missing(next)); // nothing but rows that are not in their place
        } else if is_whole {
            slots.extend((next..=last).take(MAX_MISSING).map(missing));
        }
        Ok(slots)
    }

    /// The same one by one, for as long as `show` wants more.
    pub(crate) fn each_after(
        &self,
        position: u64,
        limit: usize,
        mut show: impl FnMut(Slot) -> ControlFlow<()>,
    ) -> rusqlite::Result<()> {
        let sql =
            format!("SELECT {COLUMNS} FROM events WHERE position > ?1 ORDER BY position LIMIT ?2");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![position, limit])?;
        while let Some(row) = rows.next()? {
            if show(Stored::read(row, 0)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// At most `limit` events that are due to be retried: the longest overdue, in order. `not_after` is
    /// further away than any wait, so an event due later than that was given its time by a wrong clock
    /// and counts as due.
    pub(crate) fn due(
        &self,
        now: Timestamp,
        not_after: Timestamp,
        limit: usize,
    ) -> rusqlite::Result<Vec<Deferred>> {
        let sql = format!(
            "SELECT {COLUMNS}, attempts FROM deferred WHERE position IN (
                SELECT position FROM (SELECT position FROM deferred
                    WHERE not_before <= ?1 ORDER BY not_before LIMIT ?3)
                UNION ALL SELECT position FROM (SELECT position FROM deferred
                    WHERE not_before > ?2 ORDER BY not_before DESC LIMIT ?3))
             ORDER BY position LIMIT ?3"
        );
        self.deferred(&sql, params![now, not_after, limit])
    }

    /// At most `limit` deferred events after a position, in order, due or not.
    pub(crate) fn deferred_after(
        &self,
        position: u64,
        limit: usize,
    ) -> rusqlite::Result<Vec<Deferred>> {
        let sql = format!(
            "SELECT {COLUMNS}, attempts FROM deferred WHERE position > ?1 ORDER BY position LIMIT ?2"
        );
        self.deferred(&sql, params![position, limit])
    }

    fn deferred(
        &self,
        sql: &str,
        parameters: &[&dyn rusqlite::ToSql],
    ) -> rusqlite::Result<Vec<Deferred>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(parameters, |row| {
            Ok(Deferred { slot: Stored::read(row, 0)?, attempts: row.get("attempts").unwrap_or(0) })
        })?;
        rows.collect()
    }

    /// When the next deferred event is due, on the steady clock.
    pub(crate) fn next_due(&self) -> rusqlite::Result<Option<Timestamp>> {
        let sql = "SELECT min(not_before) FROM deferred";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    /// The position before the oldest event that is kept.
    pub(crate) fn before_oldest(&self) -> rusqlite::Result<u64> {
        let oldest: Option<u64> = self
            .connection
            .prepare_cached("SELECT min(position) FROM events")?
            .query_row([], |row| row.get(0))?;
        match oldest {
            Some(oldest) => Ok(oldest.saturating_sub(1)), // 0 is none that was ever given
            None => self.newest(),
        }
    }

    /// The position of the newest event, even if it has been removed.
    pub(crate) fn newest(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT max(settled_through,
                coalesce((SELECT max(position) FROM events), 0),
                coalesce((SELECT max(position) FROM ids), 0)) FROM relay";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    pub(super) fn settled_through(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT settled_through FROM relay";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    /// When the oldest event that is not yet delivered was accepted, on the steady clock.
    pub(crate) fn oldest_pending_at(&self) -> rusqlite::Result<Option<Timestamp>> {
        let sql = "SELECT min(steady_at) FROM (
                SELECT steady_at FROM (SELECT steady_at FROM events
                    WHERE position > (SELECT settled_through FROM relay) ORDER BY position LIMIT 1)
                UNION ALL SELECT steady_at FROM (
                    SELECT steady_at FROM deferred ORDER BY position LIMIT 1))";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }
}
