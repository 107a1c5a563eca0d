//! How the writer manages space between batches: it removes delivered events when they expire or when
//! room is short, and returns free pages to the file system.

use std::time::Duration;

use rusqlite::{Connection, Transaction};

use crate::time::Timestamp;

/// The most events that one transaction removes, so that no callback waits long behind it.
const TRIM_AT_ONCE: u64 = 1024;

/// The most rows examined for expiry at one tick.
const EXPIRE_AT_ONCE: u64 = 10_000;

/// Free pages to keep for reuse before returning space, and how many to return at a time.
const KEEP_FREE_PAGES: u64 = 2048;
const VACUUM_AT_ONCE: u64 = 1024;

/// Percent of `outbox.max_bytes` in use at which delivered history starts to be removed early, and at
/// which that stops.
const NEAR_FULL: u64 = 90;
const ENOUGH_ROOM: u64 = 80;

pub(super) struct History {
    /// How long to keep delivered events, and how many.
    keep: Duration,
    keep_events: u64,
    max_bytes: u64,
    gives_way: bool,
    /// The oldest position kept; one past the last if there is none.
    pub(super) oldest: u64,
    /// Events up to here are older than `keep`.
    expired: u64,
    is_near_full: bool,
}

impl History {
    pub(super) fn new(keep: Duration, keep_events: u64, max_bytes: u64, gives_way: bool) -> Self {
        let (oldest, expired, is_near_full) = (1, 0, false);
        History { keep, keep_events, max_bytes, gives_way, oldest, expired, is_near_full }
    }

    pub(super) fn load(&mut self, connection: &Connection, newest: u64) -> rusqlite::Result<()> {
        let oldest: Option<u64> =
            connection.query_row("SELECT min(position) FROM events", [], |row| row.get(0))?;
        self.oldest = oldest.unwrap_or(newest + 1);
        Ok(())
    }

    /// The last position that may be removed now, if any: expired (or in excess) and settled.
    pub(super) fn surplus(&self, newest: u64, settled_through: u64) -> Option<u64> {
        let too_many = newest.saturating_sub(self.keep_events);
        let for_room = if self.is_near_full { settled_through } else { 0 };
        let last = self.expired.max(too_many).max(for_room).min(settled_through);
        (last >= self.oldest).then(|| last.min(self.oldest + TRIM_AT_ONCE - 1))
    }

    /// Moves past the events that are older than `keep`. A time in the future comes from a run whose
    /// clock was wrong. It is compared by its distance as well; otherwise it would hold up everything
    /// behind it.
    pub(super) fn expire(
        &mut self,
        connection: &Connection,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let sql =
            "SELECT position, steady_at FROM events WHERE position > ?1 ORDER BY position LIMIT ?2";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([self.expired.max(self.oldest - 1), EXPIRE_AT_ONCE])?;
        while let Some(row) = rows.next()? {
            // A damaged time is not a reason to keep the row.
            let at = row.get::<_, Timestamp>(1).unwrap_or_default();
            if now.distance(at) < self.keep {
                break;
            }
            self.expired = row.get(0)?;
        }
        Ok(())
    }

    /// Updates the near-full state from the bytes in use.
    pub(super) fn measure(&mut self, used: u64) {
        let percent = if self.is_near_full { ENOUGH_ROOM } else { NEAR_FULL };
        self.press(used > self.max_bytes / 100 * percent);
    }

    /// While space is short, delivered events are removed early, if that is allowed.
    pub(super) fn press(&mut self, is_near_full: bool) {
        let is_near_full = is_near_full && self.gives_way;
        if is_near_full && !self.is_near_full {
            tracing::warn!(
                max_bytes = self.max_bytes,
                "the outbox is nearly full: delivered events are removed before outbox.history has passed"
            );
        }
        self.is_near_full = is_near_full;
    }

    pub(super) fn is_near_full(&self) -> bool {
        self.is_near_full
    }
}

pub(super) fn trim(transaction: &Transaction, through: u64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM events WHERE position <= ?1";
    transaction.prepare_cached(sql)?.execute([through]).map(drop)
}

/// The number of pages in the file, and how many of them are free.
pub(super) fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let mut pages = connection.prepare_cached("PRAGMA page_count")?;
    let mut free = connection.prepare_cached("PRAGMA freelist_count")?;
    Ok((pages.query_row([], |row| row.get(0))?, free.query_row([], |row| row.get(0))?))
}

/// Shrinks the file a little when much of it is free.
pub(super) fn give_space_back(connection: &Connection) -> rusqlite::Result<()> {
    let (pages, free) = pages(connection)?;
    if free < KEEP_FREE_PAGES.max(pages / 4) {
        return Ok(());
    }
    vacuum(connection, VACUUM_AT_ONCE).map(drop)
}

/// Returns free pages to the file system, last page first. True if that did something and there are more:
/// a file created without incremental vacuum keeps its free pages.
pub(super) fn vacuum(connection: &Connection, limit: u64) -> rusqlite::Result<bool> {
    let (_, before) = pages(connection)?;
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({limit})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {} // one page per step
    let (_, free) = pages(connection)?;
    Ok((1..before).contains(&free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_shrink_is_not_tried_for_ever() {
        for (mode, is_done_after) in [("INCREMENTAL", 3), ("NONE", 1)] {
            let connection = Connection::open_in_memory().unwrap();
            let filled = format!(
                "PRAGMA auto_vacuum = {mode}; CREATE TABLE t (x);
                 INSERT INTO t VALUES (zeroblob(1000000)); DELETE FROM t;"
            );
            connection.execute_batch(&filled).unwrap();
            assert!(pages(&connection).unwrap().1 > 200);
            let mut steps = 1;
            while vacuum(&connection, 100).unwrap() {
                steps += 1;
            }
            assert_eq!(steps, is_done_after, "{mode}");
        }
    }
}
