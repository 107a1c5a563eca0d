//! What is in the file, and how a connection to it is set up. An operator may open it with
//! `sqlite3`, beside a running bridge too, for reading.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::OpenError;

/// `user_version` of the file. A change raises it and adds a step to [`STEPS`].
const VERSION: i64 = 2;

/// `application_id` of the file, "TBrg": another program's database is never written to.
const APPLICATION: i64 = 0x5442_7267;

/// `events` is the queue and the history in one: `relay.settled_through` divides it. `ids` stands
/// apart so that a start reads thirty bytes an event, and not all of it, to know what it has seen.
/// Times are in milliseconds since the epoch.
const STEPS: [&str; VERSION as usize] = [TABLES, TRACES];

const TABLES: &str = "
    CREATE TABLE events (
        position    INTEGER PRIMARY KEY,
        accepted_at INTEGER NOT NULL,
        event       TEXT NOT NULL          -- the CloudEvent as JSON
    );
    CREATE TABLE ids (
        position    INTEGER PRIMARY KEY,
        first_id    BLOB NOT NULL,         -- the id that the topic's first creation has
        accepted_at INTEGER NOT NULL
    );
    CREATE TABLE relay (
        settled_through INTEGER NOT NULL   -- up to here all is delivered, deferred or dead
    );
    INSERT INTO relay VALUES (0);
    CREATE TABLE deferred (
        position    INTEGER PRIMARY KEY,   -- of an event that had to be tried again by itself
        attempts    INTEGER NOT NULL,
        not_before  INTEGER NOT NULL,
        reason      TEXT NOT NULL
    );
    CREATE TABLE dead_letters (
        position    INTEGER PRIMARY KEY,
        accepted_at INTEGER NOT NULL,
        event       TEXT NOT NULL,
        refused_at  INTEGER NOT NULL,
        reason      TEXT NOT NULL
    );
    CREATE TABLE quarantine (
        number          INTEGER PRIMARY KEY AUTOINCREMENT,
        received_at     INTEGER NOT NULL,
        sdk_app_id      INTEGER NOT NULL,
        client_ip       TEXT,
        client_platform TEXT,
        reason          TEXT NOT NULL,
        body            BLOB NOT NULL      -- as it came
    );
    CREATE TABLE probe (filler BLOB);      -- written to learn whether a full disk has room again
    INSERT INTO probe VALUES (x'');
";

const TRACES: &str = "
    ALTER TABLE events ADD COLUMN traceparent TEXT;        -- as the callback brought it
    ALTER TABLE dead_letters ADD COLUMN traceparent TEXT;
";

/// The connection that writes. Creates the file, or brings an older one up to date.
pub(super) fn open_for_writing(path: &Path) -> Result<Connection, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error));
    let connection = Connection::open(path).map_err(unusable)?;
    configure(&connection).map_err(unusable)?;
    let is_new = is_empty(&connection).map_err(unusable)?;
    if is_new {
        // Only before the first table is written can a file become one that shrinks again.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(unusable)?;
    } else {
        let application: i64 = pragma(&connection, "application_id").map_err(unusable)?;
        if application != APPLICATION {
            return Err(OpenError::unusable(path, "it is a database of another program"));
        }
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(unusable)?;
    connection.set_prepared_statement_cache_capacity(32);
    migrate(&connection, path)?;
    Ok(connection)
}

/// Brings the file to [`VERSION`], step by step, each in one transaction with its new number.
fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error));
    let found: i64 = pragma(connection, "user_version").map_err(unusable)?;
    if found > VERSION {
        return Err(OpenError::TooNew { path: path.to_owned(), found, known: VERSION });
    }
    for version in found + 1..=VERSION {
        let step = STEPS[version as usize - 1];
        let step = format!(
            "BEGIN IMMEDIATE; {step} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {version}; COMMIT;"
        );
        connection.execute_batch(&step).map_err(unusable)?;
    }
    let path = path.display();
    match found {
        VERSION => {}
        0 => tracing::info!(%path, schema_version = VERSION, "created the outbox"),
        _ => tracing::info!(%path, from = found, to = VERSION, "brought the outbox up to date"),
    }
    Ok(())
}

/// A connection that only reads; the file must be an outbox of this version.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error));
    if !path.is_file() {
        return Err(OpenError::unusable(
            path,
            "there is no such file: no bridge has run on it yet",
        ));
    }
    // Reading a WAL file needs its index beside it, so the connection is one that could write.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(unusable)?;
    configure(&connection).map_err(unusable)?;
    connection.pragma_update(None, "query_only", true).map_err(unusable)?;
    let application: i64 = pragma(&connection, "application_id").map_err(unusable)?;
    let found: i64 = pragma(&connection, "user_version").map_err(unusable)?;
    if application != APPLICATION {
        return Err(OpenError::unusable(path, "it is no outbox of topic-bridge"));
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

/// The connection that checkpoints beside the commits.
pub(super) fn open_for_checkpoints(path: &Path) -> Result<Connection, OpenError> {
    let unusable = |error: rusqlite::Error| OpenError::unusable(path, explain(&error));
    let connection = Connection::open(path).map_err(unusable)?;
    configure(&connection).map_err(unusable)?;
    Ok(connection)
}

/// What all connections have in common.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(1))?;
    // A checkpoint inside a commit would make its waiters wait: one runs beside them.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // Else a statement with a bound LIMIT is compiled anew for each value.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

pub(super) fn pragma<T: rusqlite::types::FromSql>(
    connection: &Connection,
    name: &str,
) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// SQLite's word for what happened, with a cause where the word alone misleads.
fn explain(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, ReadOnly};
    let hint = match error.sqlite_error_code() {
        Some(CannotOpen | ReadOnly) => ": may this user write the file and its directory?",
        Some(NotADatabase) => ": it is no SQLite file; name another outbox.path",
        Some(DatabaseCorrupt) => {
            ": keep a copy, save what can be read with `sqlite3 FILE .recover`, and start on a new file"
        }
        _ => "",
    };
    format!("{error}{hint}")
}
