//! What the writer does beside the batches about space: it lets delivered events go when their time is
//! over, or for want of room, and gives free pages back.

use std::time::Duration;

use rusqlite::{Connection, Transaction};

use crate::time::Timestamp;

/// Events that one transaction trims at most, so that no callback waits long behind it.
const TRIM_AT_ONCE: u64 = 1024;

/// Rows that one look at the clock goes through at most.
const EXPIRE_AT_ONCE: u64 = 10_000;

/// Free pages that are kept for reuse before space is given back, and how many go back at a time.
const KEEP_FREE_PAGES: u64 = 2048;
const VACUUM_AT_ONCE: u64 = 1024;

/// Percent of `outbox.max_bytes` in use at which delivered history begins to give way, and at which
/// it need not any more.
const NEAR_FULL: u64 = 90;
const ENOUGH_ROOM: u64 = 80;

pub(super) struct History {
    /// How long delivered events are kept, and how many.
    keep: Duration,
    keep_events: u64,
    max_bytes: u64,
    gives_way: bool,
    /// The oldest position that is kept; one past the last where none is.
    pub(super) oldest: u64,
    /// Up to here the history has served its time.
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

    /// The last position that may go now, if one may: past its time, and settled.
    pub(super) fn surplus(&self, newest: u64, settled_through: u64) -> Option<u64> {
        let too_many = newest.saturating_sub(self.keep_events);
        let for_room = if self.is_near_full { settled_through } else { 0 };
        let last = self.expired.max(too_many).max(for_room).min(settled_through);
        (last >= self.oldest).then(|| last.min(self.oldest + TRIM_AT_ONCE - 1))
    }

    /// Moves past the events that are older than the history's time. A time from the future is of a run
    /// whose clock was wrong: it counts by its distance, too, else it would hold up all behind it.
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
            // A damaged time is no reason to keep the row.
            let at = row.get::<_, Timestamp>(1).unwrap_or_default();
            if now.distance(at) < self.keep {
                break;
            }
            self.expired = row.get(0)?;
        }
        Ok(())
    }

    /// Takes note of how much is in use.
    pub(super) fn measure(&mut self, used: u64) {
        let percent = if self.is_near_full { ENOUGH_ROOM } else { NEAR_FULL };
        self.press(used > self.max_bytes / 100 * percent);
    }

    /// Delivered events go before their time while there is no room, where they may.
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

/// Pages of the file, and those of them that are free.
pub(super) fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let mut pages = connection.prepare_cached("PRAGMA page_count")?;
    let mut free = connection.prepare_cached("PRAGMA freelist_count")?;
    Ok((pages.query_row([], |row| row.get(0))?, free.query_row([], |row| row.get(0))?))
}

/// Shrinks the file by a little when much of it is free.
pub(super) fn give_space_back(connection: &Connection) -> rusqlite::Result<()> {
    let (pages, free) = pages(connection)?;
    if free < KEEP_FREE_PAGES.max(pages / 4) {
        return Ok(());
    }
    vacuum(connection, VACUUM_AT_ONCE).map(drop)
}

/// Gives free pages back, the last of the file first. Whether that did something and there are more: a file
/// that was made without incremental vacuum keeps them.
pub(super) fn vacuum(connection: &Connection, limit: u64) -> rusqlite::Result<bool> {
    let (_, before) = pages(connection)?;
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({limit})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {} // a page a step
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
