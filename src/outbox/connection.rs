//! How each connection to the file is set up: the writer's, the checkpointer's, and the readers'.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::log::checkpoint;
use super::schema::{APPLICATION, VERSION, explain, pragma};
use super::{OpenError, migrate};

/// The first SQLite release whose checkpoints cannot damage a log that another connection is restarting
/// (https://sqlite.org/wal.html, "The WAL-reset bug"). Two of our threads do exactly that all day.
const OLDEST_LIBRARY: i32 = 3_051_003;

/// How long to wait for another program's lock.
const BUSY: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1000 });

/// Refuses a system SQLite that is too old to be trusted with the log.
pub(super) fn check_library(version: i32) -> Result<(), String> {
    if version >= OLDEST_LIBRARY {
        return Ok(());
    }
    let [major, minor, patch] = [version / 1_000_000, version / 1000 % 1000, version % 1000];
    Err(format!(
        "this program was built with SQLite {major}.{minor}.{patch}, whose checkpoints can damage the \
         log: build it with 3.51.3 or later, or with the bundled one"
    ))
}

/// The connection that writes. The log is copied into the file before anything is read, so whatever was
/// recovered from it is durable, even if its own syncs failed.
pub(super) fn open_for_writing(path: &Path) -> Result<Connection, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error, path));
    let connection = open(path).map_err(unusable)?;
    checkpoint_at_start(&connection).map_err(unusable)?;
    let is_new = is_empty(&connection).map_err(unusable)?;
    if is_new {
        // A file can only be made shrinkable before its first table is written.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(unusable)?;
    } else {
        let application: i64 = pragma(&connection, "application_id").map_err(unusable)?;
        if application != APPLICATION {
            return Err(OpenError::unusable(path, "it is a database of another program"));
        }
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(unusable)?;
    connection.set_prepared_statement_cache_capacity(48);
    migrate::run(&connection, path)?;
    Ok(connection)
}

/// A reader's open transaction or a full disk may keep the log from being emptied. That is harmless: the
/// log has already been synced.
fn checkpoint_at_start(connection: &Connection) -> rusqlite::Result<()> {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    match checkpoint(connection, "TRUNCATE") {
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(DatabaseBusy | DatabaseLocked | DiskFull)
            ) =>
        {
            tracing::warn!(%error, "the outbox's log could not be emptied at the start");
            Ok(())
        }
        other => other.map(drop),
    }
}

/// SQLite would not treat a name such as ":memory:" or "file:…" as a plain file name.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection)?;
    Ok(connection)
}

/// A connection that only reads; the file must be an outbox of this version.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error, path));
    if !path.is_file() {
        return Err(OpenError::unusable(
            path,
            "there is no such file: no bridge has run on it yet",
        ));
    }
    // Reading a WAL file needs its index next to it, so the connection must be one that could write.
    let connection = open(path).map_err(unusable)?;
    connection.pragma_update(None, "query_only", true).map_err(unusable)?;
    let application: i64 = pragma(&connection, "application_id").map_err(unusable)?;
    let found: i64 = pragma(&connection, "user_version").map_err(unusable)?;
    if application != APPLICATION {
        return Err(OpenError::unusable(path, "it is not a topic-bridge outbox"));
    }
    if found < VERSION {
        let reason = "an older release wrote it: start the bridge on it once";
        return Err(OpenError::unusable(path, reason));
    }
    if found > VERSION {
        return Err(OpenError::TooNew { path: path.to_owned(), found, known: VERSION });
    }
    Ok(connection)
}

/// The connection that runs checkpoints alongside the commits.
pub(super) fn open_for_checkpoints(path: &Path) -> Result<Connection, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error, path));
    open(path).map_err(unusable)
}

/// What all connections have in common.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    // A page that the disk has altered is an error, where it can be known, and not fewer rows.
    connection.pragma_update(None, "cell_size_check", true)?;
    // A checkpoint inside a commit would delay its waiters, so a separate thread runs them.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // Otherwise a statement with a bound LIMIT is recompiled for each value.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// A log that has grown longer is cut to this size when it restarts.
pub(super) fn limit_log(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_size_limit", bytes)
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_can_damage_the_log_is_refused() {
        for (version, is_good) in [(3_051_003, true), (3_053_000, true), (3_051_002, false)] {
            assert_eq!(check_library(version).is_ok(), is_good, "{version}");
        }
        assert!(check_library(3_007_017).unwrap_err().contains("SQLite 3.7.17"));
        assert!(check_library(rusqlite::version_number()).is_ok(), "the one that is built in");
    }
}
