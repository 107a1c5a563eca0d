//! Looks for damage in an outbox, without changing anything: SQLite's own check of all pages, the checksum of
//! each row, and whether the tables agree with each other.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension as _};
use serde::Serialize;
use uuid::Uuid;

use super::row::{CALLBACK, COLUMNS, Stored, position};
use super::{Damaged, OpenError, Quarantined, connection, lock, recovery, schema, sound};
use crate::event::recreated_id;

/// Of each kind; the rest is counted.
const MAX_FINDINGS: usize = 100;

/// What is damaged, and where.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Finding {
    /// A file, or a table.
    pub(crate) place: String,
    pub(crate) what: String,
}

/// What a check found, and how many rows of each table it could read.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    pub(crate) rows: Vec<(&'static str, u64)>,
}

impl Report {
    fn add(&mut self, place: &str, what: impl ToString) {
        self.findings.push(Finding { place: place.to_owned(), what: what.to_string() });
    }

    /// Adds the first of these, and how many more there are.
    fn add_all(&mut self, place: &str, whats: Vec<String>) {
        let more = whats.len().saturating_sub(MAX_FINDINGS);
        whats.into_iter().take(MAX_FINDINGS).for_each(|what| self.add(place, what));
        if more > 0 {
            self.add(place, format!("and {more} more like these"));
        }
    }
}

/// An error means that it could not be looked into at all.
pub(crate) fn check(path: &Path) -> Result<Report, OpenError> {
    let mut report = Report::default();
    let unusable =
        |error: rusqlite::Error| OpenError::unusable(path, schema::explain(&error, path));
    if !lock::is_in_use(path) {
        look_at_log(path, &mut report);
    }
    let connection = connection::open_for_reading(path)?;
    // The last connection that closes would copy the log into the file.
    let keep_log = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(keep_log, true).map_err(unusable)?;
    connection.execute_batch("BEGIN").map_err(unusable)?; // all of it at one moment
    pages(&connection, path, &mut report);
    let set_aside = set_aside(&connection);
    let settled_through = sound::watermark(&connection);
    let newest = match &settled_through {
        Ok(through) => sound::newest(&connection, *through),
        Err(_) => sound::newest(&connection, 0),
    };
    for error in [settled_through.as_ref().err(), newest.as_ref().err()].into_iter().flatten() {
        report.add("watermark", error);
    }
    let settled_through = settled_through.unwrap_or(0);
    events(&connection, newest.unwrap_or(0), settled_through, &set_aside, &mut report);
    copies(&connection, settled_through, &mut report);
    ids(&connection, &mut report);
    quarantine(&connection, &mut report);
    Ok(report)
}

fn look_at_log(path: &Path, report: &mut Report) {
    let log = lock::beside(path, "-wal").display().to_string();
    match recovery::cut_off(path) {
        Ok(Some(cut_off)) if cut_off.commits > 0 => {
            let (bytes, commits) = (cut_off.bytes, cut_off.commits);
            let what = format!(
                "its last {bytes} bytes, {commits} transactions, cannot be read: a start cuts them off"
            );
            report.add(&log, what);
        }
        Ok(_) => {}
        Err(error) => report.add(&log, error),
    }
}

fn pages(connection: &Connection, path: &Path, report: &mut Report) {
    let place = path.display().to_string();
    match sound::pages(connection, 1000) {
        Ok(lines) => report.add_all(&place, lines),
        Err(error) => report.add(&place, error),
    }
}

/// The positions of the dead letters: what is damaged and among them is already known of.
fn set_aside(connection: &Connection) -> BTreeSet<u64> {
    let mut positions = BTreeSet::new();
    let _ = each(connection, "SELECT position FROM dead_letters ORDER BY position", |row| {
        positions.insert(row.get(0)?);
        Ok(())
    });
    positions
}

/// Runs a query to its end, or to the first page that cannot be read.
pub(super) fn each(
    connection: &Connection,
    sql: &str,
    mut see: impl FnMut(&rusqlite::Row) -> rusqlite::Result<()>,
) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        see(row)?;
        count += 1;
    }
    Ok(count)
}

fn count(report: &mut Report, table: &'static str, last: i64, read: rusqlite::Result<u64>) {
    match read {
        Ok(count) => report.rows.push((table, count)),
        Err(error) => report.add(table, format!("cannot be read on after {last}: {error}")),
    }
}

fn events(
    connection: &Connection,
    newest: u64,
    settled_through: u64,
    set_aside: &BTreeSet<u64>,
    report: &mut Report,
) {
    let (mut damaged, mut missing, mut strange) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    let mut gap = |from: u64, to: u64| {
        let is_known = to - from < 1_000_000 && (from..=to).all(|at| set_aside.contains(&at));
        if !is_known {
            missing.push(format!("positions {from} to {to} are missing"));
        }
    };
    let sql = format!("SELECT {COLUMNS} FROM events ORDER BY position");
    let read = each(connection, &sql, |row| {
        let slot = Stored::read(row, 0)?;
        let at = position(&slot);
        if let Some(last) = last.filter(|last| last + 1 < at) {
            gap(last + 1, at - 1);
        }
        last = Some(at);
        match slot {
            Err(Damaged { reason, .. }) if !set_aside.contains(&at) => {
                damaged.push(format!("position {at}: {reason}"));
            }
            Ok(stored) if !has_its_id(connection, &stored)? => {
                strange.push(format!("position {at}: the id is not that of the event"));
            }
            _ => {}
        }
        Ok(())
    });
    let end = last.unwrap_or(0).max(settled_through);
    if read.is_ok() && end < newest {
        gap(end + 1, newest);
    }
    report.add_all("events", damaged);
    report.add_all("events", missing);
    report.add_all("ids", strange);
    count(report, "events", last.unwrap_or(0).cast_signed(), read);
}

/// Whether the id that is remembered with an event's position is that of its topic, if it is still remembered.
fn has_its_id(connection: &Connection, stored: &Stored) -> rusqlite::Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT first_id FROM ids WHERE position = ?1")?;
    let found = statement.query_row([stored.position], |row| {
        Ok(Uuid::from_slice(row.get_ref(0)?.as_bytes().unwrap_or_default()).ok())
    });
    let Some(first) = found.optional()? else { return Ok(true) };
    let id = stored.event.id;
    Ok(first.is_some_and(|first| id == first || id == recreated_id(first, stored.accepted_at)))
}

/// The copies: deferred events and dead letters. Of the latter, a damaged event is one already known of.
fn copies(connection: &Connection, settled_through: u64, report: &mut Report) {
    for table in ["deferred", "dead_letters"] {
        let (mut damaged, mut last) = (Vec::new(), 0);
        let sql = format!("SELECT {COLUMNS}, reason FROM {table} ORDER BY position");
        let read = each(connection, &sql, |row| {
            let slot = Stored::read(row, 0)?;
            last = position(&slot).cast_signed();
            let is_known = table == "dead_letters"
                && row
                    .get::<_, String>("reason")
                    .is_ok_and(|reason| reason.contains("stored event is"));
            match slot {
                Err(Damaged { reason, .. }) if !is_known => {
                    damaged.push(format!("position {last}: {reason}"));
                }
                Ok(stored) if table == "deferred" && stored.position > settled_through => {
                    damaged.push(format!("position {last} is deferred, and not settled"));
                }
                _ => {}
            }
            Ok(())
        });
        report.add_all(table, damaged);
        count(report, table, last, read);
    }
}

fn ids(connection: &Connection, report: &mut Report) {
    let (mut damaged, mut last) = (Vec::new(), 0);
    let read = each(connection, "SELECT position, first_id FROM ids ORDER BY position", |row| {
        last = row.get(0)?;
        if row.get_ref(1)?.as_blob().is_ok_and(|id| id.len() == 16) {
            return Ok(());
        }
        damaged.push(format!("position {last}: this is not an id"));
        Ok(())
    });
    report.add_all("ids", damaged);
    count(report, "ids", last, read);
}

fn quarantine(connection: &Connection, report: &mut Report) {
    let (mut damaged, mut last) = (Vec::new(), 0);
    let sql = format!("SELECT {CALLBACK} FROM quarantine ORDER BY number");
    let read = each(connection, &sql, |row| {
        last = row.get(0)?;
        if Quarantined::read(row).is_none() {
            damaged.push(format!("number {last}: its checksum does not match"));
        }
        Ok(())
    });
    report.add_all("quarantine", damaged);
    count(report, "quarantine", last, read);
}
