//! Upgrades the file of an earlier release in one transaction: afterwards it is either fully converted or
//! unchanged.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::row::{CALLBACK, COLUMNS, Stored, inserting, sum_of_watermark};
use super::schema::{APPLICATION, VERSION, explain, pragma, tables};
use super::{OpenError, Quarantined};
use crate::message::Envelope;
use crate::time::Timestamp;

pub(super) fn run(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error, path));
    let found: i64 = pragma(connection, "user_version").map_err(unusable)?;
    if found > VERSION {
        return Err(OpenError::TooNew { path: path.to_owned(), found, known: VERSION });
    }
    if found == VERSION {
        return Ok(());
    }
    let migrate = || {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        match found {
            0 => transaction.execute_batch(&tables())?,
            _ => upgrade(&transaction, found)?,
        }
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    };
    migrate().map_err(unusable)?;
    let path = path.display();
    match found {
        0 => tracing::info!(%path, schema_version = VERSION, "created the outbox"),
        _ => tracing::info!(%path, from = found, to = VERSION, "migrated the outbox"),
    }
    Ok(())
}

/// From an older version to this one.
fn upgrade(transaction: &Transaction, from: i64) -> rusqlite::Result<()> {
    if from >= 3 {
        return add_checksums(transaction);
    }
    if from < 2 {
        transaction.execute_batch(
            "ALTER TABLE events ADD COLUMN traceparent TEXT;
             ALTER TABLE dead_letters ADD COLUMN traceparent TEXT;",
        )?;
    }
    split_events(transaction)
}

/// Since 4 the watermark and the quarantined callbacks have checksums.
fn add_checksums(transaction: &Transaction) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "ALTER TABLE relay ADD COLUMN checksum INTEGER NOT NULL DEFAULT -1;
         ALTER TABLE quarantine ADD COLUMN checksum INTEGER NOT NULL DEFAULT -1;",
    )?;
    sum_watermark(transaction)?;
    sum_quarantine(transaction)
}

fn sum_watermark(transaction: &Transaction) -> rusqlite::Result<()> {
    let sql = "SELECT settled_through FROM relay";
    let through = transaction.query_row(sql, [], |row| row.get(0))?;
    transaction.execute("UPDATE relay SET checksum = ?1", [sum_of_watermark(through)]).map(drop)
}

/// What cannot be read keeps a checksum that matches nothing.
fn sum_quarantine(transaction: &Transaction) -> rusqlite::Result<()> {
    let mut select = transaction.prepare(&format!("SELECT {CALLBACK} FROM quarantine"))?;
    let mut update =
        transaction.prepare("UPDATE quarantine SET checksum = ?1 WHERE number = ?2")?;
    let mut rows = select.query([])?;
    let mut sums = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(callback) = Quarantined::lift(row) {
            sums.push((callback.checksum(), row.get::<_, i64>(0)?));
        }
    }
    for (sum, number) in sums {
        update.execute(params![sum, number])?;
    }
    Ok(())
}

/// Since 3 the event's JSON is in columns with a checksum, `deferred` holds copies, and ids have their own table.
fn split_events(transaction: &Transaction) -> rusqlite::Result<()> {
    for table in ["events", "deferred", "dead_letters", "ids", "quarantine", "relay"] {
        transaction.execute_batch(&format!("ALTER TABLE {table} RENAME TO old_{table};"))?;
    }
    transaction.execute_batch(&tables())?;
    let declaration = super::row::DECLARATION;
    transaction.execute_batch(&format!("CREATE TABLE moved ({declaration});"))?;
    copy(transaction, "old_events", "events")?;
    copy(transaction, "old_dead_letters", "moved")?;
    transaction.execute_batch(&format!(
        "INSERT INTO deferred SELECT {COLUMNS}, attempts, not_before, reason
             FROM events JOIN old_deferred USING (position);
         INSERT OR IGNORE INTO dead_letters SELECT {COLUMNS}, refused_at, reason
             FROM moved JOIN (SELECT position, refused_at, reason FROM old_dead_letters) USING (position);
         UPDATE relay SET settled_through = (SELECT settled_through FROM old_relay);
         INSERT INTO ids SELECT position, first_id, accepted_at FROM (
             SELECT max(position) AS position, first_id, accepted_at FROM old_ids GROUP BY first_id)
             ORDER BY position;
         INSERT INTO quarantine SELECT *, -1 FROM old_quarantine;
         DROP TABLE moved; DROP TABLE old_events; DROP TABLE old_deferred; DROP TABLE old_dead_letters;
         DROP TABLE old_ids; DROP TABLE old_quarantine; DROP TABLE old_relay; DROP TABLE probe;"
    ))?;
    sum_watermark(transaction)?;
    sum_quarantine(transaction)
}

/// Copies the events of an old table. One that cannot be read and was not delivered becomes a dead
/// letter, unchanged.
fn copy(transaction: &Transaction, from: &str, to: &str) -> rusqlite::Result<()> {
    let sql =
        format!("SELECT position, accepted_at, event, traceparent FROM {from} ORDER BY position");
    let mut select = transaction.prepare(&sql)?;
    let mut rows = select.query([])?;
    let mut insertion = inserting(transaction, to)?;
    while let Some(row) = rows.next()? {
        let (position, accepted_at): (u64, Timestamp) = (row.get(0)?, row.get(1)?);
        let text = row.get_ref(2)?.as_bytes().unwrap_or_default();
        let event = std::str::from_utf8(text).ok().and_then(|text| Envelope::open(text).ok());
        let traceparent = row.get(3).unwrap_or_default();
        match event {
            Some(event) => {
                let steady_at = accepted_at;
                let stored = Stored { position, steady_at, accepted_at, event, traceparent };
                stored.values().insert(&mut insertion)?;
            }
            None => set_aside(transaction, position, accepted_at, text)?,
        }
    }
    Ok(())
}

fn set_aside(
    transaction: &Transaction,
    position: u64,
    accepted_at: Timestamp,
    text: &[u8],
) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR IGNORE INTO dead_letters ({COLUMNS}, refused_at, reason)
         SELECT ?1, ?2, ?2, zeroblob(16), 0, '', '', 0, '', '', NULL, ?3, NULL, -1, ?2,
             'the stored event is damaged: it could not be read when the outbox was brought up to date'
         WHERE ?1 > (SELECT settled_through FROM old_relay)
             OR ?1 IN (SELECT position FROM old_deferred UNION SELECT position FROM old_dead_letters)"
    );
    transaction.execute(&sql, params![position, accepted_at, text]).map(drop)
}
