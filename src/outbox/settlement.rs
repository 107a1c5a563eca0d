//! The outcomes of delivery: the watermark, and everything that it cannot express.

use rusqlite::{Transaction, params};

use super::row::{COLUMNS, sum_of_watermark};
use crate::time::Timestamp;

/// The outcomes of a batch beyond plain in-order delivery.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Settlement {
    /// Everything up to here is settled, except `again` and what was already deferred.
    pub(crate) through: u64,
    /// At or before `through`.
    pub(crate) again: Vec<Again>,
    /// Positions that were deferred and are now delivered.
    pub(crate) delivered_at_last: Vec<u64>,
    /// At or before `through`, or previously deferred.
    pub(crate) refused: Vec<Refused>,
}

impl Settlement {
    /// Whether it only says that the queue was delivered up to `through`.
    pub(crate) fn is_plain(&self) -> bool {
        self.again.is_empty() && self.delivered_at_last.is_empty() && self.refused.is_empty()
    }
}

/// An event that is to be retried.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Again {
    pub(crate) position: u64,
    pub(crate) attempts: u32,
    /// On the steady clock.
    pub(crate) not_before: Timestamp,
    pub(crate) reason: String,
}

/// An event that the sink will never accept: it becomes a dead letter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub(crate) position: u64,
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
}

/// How a settlement changed the number of rows.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Change {
    pub(super) deferred: i64,
    pub(super) dead_letters: i64,
}

pub(super) fn settle_through(transaction: &Transaction, through: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE relay SET settled_through = ?1, checksum = ?2 WHERE settled_through < ?1";
    transaction.prepare_cached(sql)?.execute(params![through, sum_of_watermark(through)]).map(drop)
}

pub(super) fn apply(
    transaction: &Transaction,
    settlement: &Settlement,
) -> rusqlite::Result<Change> {
    let mut change = Change::default();
    for again in &settlement.again {
        change.deferred += defer(transaction, again)?;
    }
    for refused in &settlement.refused {
        change.dead_letters += bury(transaction, refused)?;
    }
    let refused = settlement.refused.iter().map(|refused| &refused.position);
    for position in settlement.delivered_at_last.iter().chain(refused) {
        let sql = "DELETE FROM deferred WHERE position = ?1";
        change.deferred -= rows(transaction.prepare_cached(sql)?.execute([position])?);
    }
    settle_through(transaction, settlement.through)?;
    Ok(change)
}

/// The first time, copies the event, because the history may be removed.
fn defer(transaction: &Transaction, again: &Again) -> rusqlite::Result<i64> {
    let Again { position, attempts, not_before, reason } = again;
    let row = params![position, attempts, not_before, reason];
    let sql = "UPDATE deferred SET attempts = ?2, not_before = ?3, reason = ?4 WHERE position = ?1";
    if transaction.prepare_cached(sql)?.execute(row)? > 0 {
        return Ok(0);
    }
    let sql = format!(
        "INSERT INTO deferred ({COLUMNS}, attempts, not_before, reason)
         SELECT {COLUMNS}, ?2, ?3, ?4 FROM events WHERE position = ?1"
    );
    transaction.prepare_cached(&sql)?.execute(row).map(rows)
}

/// The row is copied as it is, readable or not. Where there is none, because the disk has lost it, an empty one
/// stands for it, so that nothing vanishes in silence.
fn bury(transaction: &Transaction, refused: &Refused) -> rusqlite::Result<i64> {
    let Refused { position, at, reason } = refused;
    for table in ["deferred", "events"] {
        let sql = format!(
            "INSERT OR IGNORE INTO dead_letters ({COLUMNS}, refused_at, reason)
             SELECT {COLUMNS}, ?2, ?3 FROM {table} WHERE position = ?1"
        );
        let inserted = transaction.prepare_cached(&sql)?.execute(params![position, at, reason])?;
        if inserted > 0 {
            return Ok(rows(inserted));
        }
    }
    put_empty(transaction, *position, *at, "", reason).map(rows)
}

/// A dead letter without an event: its checksum matches nothing.
pub(super) fn put_empty(
    transaction: &Transaction,
    position: u64,
    at: Timestamp,
    data: &str,
    reason: &str,
) -> rusqlite::Result<usize> {
    let sql = format!(
        "INSERT OR IGNORE INTO dead_letters ({COLUMNS}, refused_at, reason)
         VALUES (?1, ?2, ?2, zeroblob(16), 0, '', '', 0, '', '', NULL, ?3, NULL, -1, ?2, ?4)"
    );
    transaction.prepare_cached(&sql)?.execute(params![position, at, data, reason])
}

fn rows(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
