//! The tables in the file. An operator may open it with `sqlite3` for reading, even while the bridge is
//! running.

use std::path::Path;

use rusqlite::Connection;

use super::{lock, row};

/// `application_id` of the file, "TBrg": the bridge never writes to another program's database.
pub(super) const APPLICATION: i64 = 0x5442_7267;

/// `user_version` of the file. A schema change raises it and adds a migration step.
pub(super) const VERSION: i64 = 4;

/// The tables of a new file. `events` is both queue and history: `relay.settled_through` divides it.
/// Events to be retried and dead letters are kept as copies, so that the history can be removed no matter
/// what is still waiting. `ids` is a separate table because it is kept longer, and because a start then
/// reads only forty bytes per event to know what it has seen. Times are in milliseconds since the epoch.
pub(super) fn tables() -> String {
    let event = row::DECLARATION;
    format!(
        "CREATE TABLE events ({event}
    );
    CREATE TABLE deferred (                -- tried again one by one
        {event},
        attempts    INTEGER NOT NULL,
        not_before  INTEGER NOT NULL,      -- by the clock of steady_at
        reason      TEXT NOT NULL
    );
    CREATE INDEX deferred_due ON deferred (not_before);
    CREATE TABLE dead_letters (
        {event},
        refused_at  INTEGER NOT NULL,
        reason      TEXT NOT NULL
    );
    CREATE TABLE ids (                     -- one row a topic, its latest creation
        position    INTEGER PRIMARY KEY,
        first_id    BLOB NOT NULL,         -- the id that the topic's first creation has
        steady_at   INTEGER NOT NULL
    );
    CREATE TABLE relay (
        settled_through INTEGER NOT NULL,  -- up to here all is delivered, deferred or dead
        checksum        INTEGER NOT NULL   -- CRC-32 of it
    );
    INSERT INTO relay VALUES (0, {});
    {QUARANTINE}",
        row::sum_of_watermark(0)
    )
}

const QUARANTINE: &str = "CREATE TABLE quarantine (
        number          INTEGER PRIMARY KEY AUTOINCREMENT,
        received_at     INTEGER NOT NULL,
        sdk_app_id      INTEGER NOT NULL,
        client_ip       TEXT,
        client_platform TEXT,
        reason          TEXT NOT NULL,
        body            BLOB NOT NULL,     -- as it came
        checksum        INTEGER NOT NULL   -- CRC-32 of the others, except the number
    );";

pub(super) fn pragma<T: rusqlite::types::FromSql>(
    connection: &Connection,
    name: &str,
) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn damaged(path: &Path) -> String {
    let path = path.display();
    format!(
        ": part of {path} was overwritten; check the disk, see what is damaged with `topic-bridge outbox check \
         --path {path}`, save what can be read with `topic-bridge outbox salvage {path}.new --path {path}`, and \
         start on {path}.new as outbox.path"
    )
}

/// SQLite's message for what happened, with a hint where the message alone is misleading.
pub(super) fn explain(error: &rusqlite::Error, path: &Path) -> String {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseCorrupt, DiskFull, NotADatabase, ReadOnly, Unknown,
    };
    let is_input = matches!(error, rusqlite::Error::SqlInputError { .. });
    let hint = match error.sqlite_error_code() {
        _ if is_input => damaged(path), // our statements are right: the schema is not
        None => damaged(path),          // a value of another type, or no row where there is one
        Some(ReadOnly) if lock::unwritable(path).is_none() => damaged(path),
        Some(CannotOpen | ReadOnly) => ": may this user write the file and its directory?".into(),
        Some(NotADatabase) => ": it is not an SQLite file; set outbox.path to another file".into(),
        // Of a file that is as it was written, no statement of ours fails in another way.
        Some(DatabaseCorrupt | Unknown) => damaged(path),
        Some(DiskFull) => ": make room, and start again".into(),
        _ => String::new(),
    };
    format!("{error}{hint}")
}
