//! Reads what can be read of a damaged outbox into a new one. Works on a copy, so that the damaged file stays as it
//! is. Events keep their positions and ids. Where it is in doubt whether an event was delivered, it is pending.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};
use serde::Serialize;

use super::lock::{Lock, beside};
use super::log::checkpoint;
use super::row::{CALLBACK, COLUMNS, Stored, sum_of_watermark};
use super::walk::walk;
use super::{OpenError, Quarantined, connection, migrate, schema, sound};
use crate::event;

/// What was found in a table.
#[derive(Debug, Serialize, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) table: &'static str,
    /// Rows that are in the new file.
    pub(crate) saved: u64,
    /// Of these, the ones whose checksum does not match: of events, the bridge makes dead letters.
    pub(crate) altered: u64,
    /// Rows that make no sense, and are not in it.
    pub(crate) left_out: u64,
    /// Numbers of rows, from and to, that cannot be read: what was there is lost.
    pub(crate) unreadable: Vec<(u64, u64)>,
}

/// What was saved, and what was not.
#[derive(Debug, Serialize)]
pub(crate) struct Salvaged {
    pub(crate) tables: Vec<Table>,
    pub(crate) pending: u64,
    /// Positions of the queue and the history kept that are not in the new file.
    pub(crate) missing: u64,
    /// The watermark could not be read, so everything that is kept counts as pending.
    pub(crate) is_in_doubt: bool,
    /// Topics whose id was found by their event.
    pub(crate) ids_rebuilt: u64,
}

/// The tables, their columns, and what numbers their rows.
fn tables() -> [(&'static str, String, &'static str); 5] {
    [
        ("events", COLUMNS.to_owned(), "position"),
        ("deferred", format!("{COLUMNS}, attempts, not_before, reason"), "position"),
        ("dead_letters", format!("{COLUMNS}, refused_at, reason"), "position"),
        ("ids", "position, first_id, steady_at".to_owned(), "position"),
        ("quarantine", CALLBACK.to_owned(), "number"),
    ]
}

/// `new` must not exist. There must be room beside it for a copy of the damaged file.
pub(crate) fn salvage(damaged: &Path, new: &Path) -> Result<Salvaged, OpenError> {
    for suffix in ["", "-wal", "-shm", "-copy", "-copy-wal"] {
        let path = beside(new, suffix);
        if path.exists() {
            return Err(OpenError::unusable(&path, "it exists: name a file that does not"));
        }
    }
    let held = hold(damaged)?;
    let files = Files { new: new.to_owned(), is_whole: false };
    let unusable = |error: rusqlite::Error| OpenError::unusable(new, schema::explain(&error, new));
    let lock = Lock::acquire(new)?; // creates it
    let into = connection::open_for_writing(new)?;
    checkpoint(&into, "TRUNCATE").map_err(unusable)?;
    copy(damaged, new)?;
    let from = open_copy(damaged, new)?;
    let salvaged = pour(&from, &into, new)?;
    checkpoint(&into, "TRUNCATE").map_err(unusable)?;
    into.close().map_err(|(_, error)| unusable(error))?;
    drop(from);
    lock.release();
    drop(held);
    files.keep();
    Ok(salvaged)
}

/// Makes sure that nobody writes the damaged file.
fn hold(damaged: &Path) -> Result<File, OpenError> {
    let unusable = |error: std::io::Error| OpenError::unusable(damaged, error);
    let file = File::open(damaged).map_err(unusable)?;
    if !file.metadata().map_err(unusable)?.is_file() {
        return Err(OpenError::unusable(damaged, "it is not a file"));
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let reason = "a bridge runs on it: stop that bridge first";
            Err(OpenError::unusable(damaged, reason))
        }
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// Removes the copy at the end, and the new file too, unless it is whole.
struct Files {
    new: PathBuf,
    is_whole: bool,
}

impl Files {
    fn keep(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let rest: &[&str] = if self.is_whole { &[] } else { &["", "-wal", "-shm"] };
        for suffix in ["-copy", "-copy-wal", "-copy-shm"].iter().chain(rest) {
            let _ = fs::remove_file(beside(&self.new, suffix)); // it may not exist
        }
    }
}

/// With its log, in which its last events may be.
fn copy(damaged: &Path, new: &Path) -> Result<(), OpenError> {
    for (from, to) in [("", "-copy"), ("-wal", "-copy-wal")] {
        let from = beside(&fs::canonicalize(damaged).unwrap_or_else(|_| damaged.into()), from);
        if from.exists() {
            let unusable = |error: std::io::Error| OpenError::unusable(&from, error);
            fs::copy(&from, beside(new, to)).map_err(unusable)?;
        }
    }
    Ok(())
}

fn open_copy(damaged: &Path, new: &Path) -> Result<Connection, OpenError> {
    let copy = beside(new, "-copy");
    let unusable =
        |error: rusqlite::Error| OpenError::unusable(damaged, schema::explain(&error, damaged));
    let look = |connection: &Connection| {
        let application: i64 = schema::pragma(connection, "application_id")?;
        let version: i64 = schema::pragma(connection, "user_version")?;
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name IN
            ('events', 'deferred', 'dead_letters', 'ids', 'relay', 'quarantine')";
        let tables: i64 = connection.query_row(sql, [], |row| row.get(0))?;
        Ok((application, version, tables))
    };
    let opened = connection::open(&copy).and_then(|from| look(&from).map(|found| (from, found)));
    let (from, (application, version, tables)) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // The first page says where the tables begin, and that is the same in all files of this version.
            mend_first_page(&copy, new).map_err(|error| OpenError::unusable(&copy, error))?;
            let from = connection::open(&copy).map_err(unusable)?;
            let found = look(&from).map_err(|_| unusable(error))?;
            (from, found)
        }
    };
    if application != schema::APPLICATION || tables < 6 && version >= 3 {
        return Err(OpenError::unusable(damaged, "it is not a topic-bridge outbox"));
    }
    migrate::run(&from, &copy)?;
    Ok(from)
}

fn mend_first_page(copy: &Path, new: &Path) -> std::io::Result<()> {
    /// Of the page count in the header: a wrong one makes SQLite go by the file's length.
    const VALID_FOR: std::ops::Range<usize> = 92..96;
    let mut page = vec![0; 4096];
    File::open(new)?.read_exact_at(&mut page, 0)?;
    page[VALID_FOR].fill(0);
    File::options().write(true).open(copy)?.write_all_at(&page, 0)
}

fn pour(from: &Connection, into: &Connection, new: &Path) -> Result<Salvaged, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(new, schema::explain(&error, new));
    into.execute_batch("BEGIN").map_err(unusable)?;
    let settled = sound::watermark(from).ok();
    let last = newest(from, settled.unwrap_or(0));
    let mut tables_saved = Vec::new();
    for (table, columns, key) in tables() {
        let end = if key == "position" { last } else { last_number(from) };
        tables_saved.push(save(from, into, (table, &columns, key), end).map_err(unusable)?);
    }
    let finish = || {
        let ids_rebuilt = rebuild_ids(into)?;
        let number = |sql: &str| into.query_row(sql, [], |row| row.get::<_, u64>(0));
        let newest = number("SELECT coalesce(max(position), 0) FROM events")?;
        let oldest = number("SELECT coalesce(min(position), 0) FROM events")?;
        let through = settled.unwrap_or_else(|| oldest.saturating_sub(1));
        let row = params![through, sum_of_watermark(through)];
        into.execute("UPDATE relay SET settled_through = ?1, checksum = ?2", row)?;
        let pending =
            into.query_row("SELECT count(*) FROM events WHERE position > ?1", [through], |row| {
                row.get::<_, u64>(0)
            })?;
        let kept = number("SELECT count(*) FROM events")?;
        let end = newest.max(number("SELECT coalesce(max(position), 0) FROM ids")?);
        // Before the oldest, history may have been removed; what was pending was not.
        let begin = if oldest == 0 { through + 1 } else { oldest.min(through + 1) };
        let missing = (end + 1).saturating_sub(begin).saturating_sub(kept);
        into.execute_batch("COMMIT")?;
        let is_in_doubt = settled.is_none();
        Ok(Salvaged { tables: tables_saved, pending, missing, is_in_doubt, ids_rebuilt })
    };
    finish().map_err(unusable)
}

/// The last position that anything speaks of credibly: where several tables end, or nearly so.
fn newest(from: &Connection, settled: u64) -> u64 {
    if let Ok(newest) = sound::newest(from, settled) {
        return newest;
    }
    let mut newest = settled;
    for order in ["position DESC LIMIT 1000", "position"] {
        let sql = format!("SELECT {COLUMNS} FROM events ORDER BY {order}");
        let _ = super::check::each(from, &sql, |row| {
            if let Ok(stored) = Stored::read(row, 0)? {
                newest = newest.max(stored.position);
            }
            Ok(())
        });
    }
    // The ids end where the events ended. Positions in between are not to be used again, even if nothing is left.
    let id = from.query_row("SELECT max(position) FROM ids", [], |row| row.get::<_, u64>(0));
    let most = newest.saturating_add(sound::MAX_MISSING);
    id.ok().filter(|id| (newest..=most).contains(id)).unwrap_or(most)
}

fn last_number(from: &Connection) -> u64 {
    let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'quarantine'";
    from.query_row(sql, [], |row| row.get(0)).unwrap_or(1_000_000)
}

/// Copies the rows of a table as they are. Those that are not what was written come last, and only into places
/// that are still empty.
fn save(
    from: &Connection,
    into: &Connection,
    (table, columns, key): (&'static str, &str, &str),
    end: u64,
) -> rusqlite::Result<Table> {
    let places: Vec<_> = (1..=columns.split(", ").count()).map(|at| format!("?{at}")).collect();
    let sql = format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES ({})", places.join(", "));
    let mut insertion = into.prepare(&sql)?;
    let mut found = Table { table, ..Table::default() };
    let mut altered: Vec<Vec<Value>> = Vec::new();
    found.unreadable = walk(from, table, columns, key, end, |row| {
        let values = (0..places.len()).map(|at| row.get::<_, Value>(at));
        let Ok(values) = values.collect::<rusqlite::Result<Vec<_>>>() else {
            found.left_out += 1; // a text that is not UTF-8
            return Ok(());
        };
        if is_sound(table, row, end)? {
            found.saved += insertion.execute(params_from_iter(values))? as u64;
        } else {
            altered.push(values);
        }
        Ok(())
    })?;
    for values in altered {
        let is_in_range =
            matches!(values[0], Value::Integer(at) if (1..=end.cast_signed()).contains(&at));
        let is_wanted = is_in_range && table != "ids";
        let is_in = is_wanted && insertion.execute(params_from_iter(values))? > 0;
        found.altered += u64::from(is_in);
        found.saved += u64::from(is_in);
        found.left_out += u64::from(!is_in);
    }
    Ok(found)
}

/// Whether a row is what was written, as far as that can be told.
fn is_sound(table: &str, row: &Row, end: u64) -> rusqlite::Result<bool> {
    Ok(match table {
        "ids" => {
            let is_near = row.get::<_, u64>(0).is_ok_and(|position| position <= end);
            is_near && row.get_ref(1)?.as_blob().is_ok_and(|id| id.len() == 16)
        }
        "quarantine" => Quarantined::read(row).is_some(),
        _ => Stored::read(row, 0)?.is_ok(),
    })
}

/// An event's id is that of its topic, or follows from it, so what is lost of the table can be found again. The
/// latest creation of a topic is the one that counts.
fn rebuild_ids(into: &Connection) -> rusqlite::Result<u64> {
    let mut known = HashSet::new();
    super::check::each(into, "SELECT first_id FROM ids", |row| {
        known.insert(row.get::<_, Vec<u8>>(0)?);
        Ok(())
    })?;
    let mut insertion = into
        .prepare("INSERT OR IGNORE INTO ids (position, first_id, steady_at) VALUES (?1, ?2, ?3)")?;
    let mut rebuilt = 0;
    let sql = format!("SELECT {COLUMNS} FROM events ORDER BY position DESC");
    super::check::each(into, &sql, |row| {
        let Ok(stored) = Stored::read(row, 0)? else { return Ok(()) };
        let Stored { position, steady_at, accepted_at, event, .. } = stored;
        let first = [None, Some(event.time)].into_iter().find_map(|time| {
            let first = event::id(event.sdk_app_id, &event.topic_id, time);
            let is_it = event.id == first || event.id == event::recreated_id(first, accepted_at);
            is_it.then(|| first.as_bytes().to_vec())
        });
        if let Some(first) = first.filter(|first| !known.contains(first)) {
            rebuilt += insertion.execute(params![position, first, steady_at])? as u64;
            known.insert(first);
        }
        Ok(())
    })?;
    Ok(rebuilt)
}
