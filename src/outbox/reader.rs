//! Reading the outbox, on connections of its own: for the relay, for the event stream, and for an
//! operator's command beside a running bridge or without one. Reads are short, so that none of them
//! holds the write-ahead log open.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::{OpenError, schema};

/// A page of events holds no more than this many bytes (and always one event), whatever their number.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// An event in the outbox. Its position is its number in the order of acceptance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) position: u64,
    /// Milliseconds since the epoch.
    pub(crate) accepted_at: u64,
    /// The CloudEvent as one line of JSON.
    pub(crate) event: String,
    /// The W3C trace context that the callback brought.
    pub(crate) traceparent: Option<String>,
}

/// An event that is to be tried once more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deferred {
    pub(crate) stored: Stored,
    /// How often it was tried so far.
    pub(crate) attempts: u32,
}

/// How much is where. Times are in milliseconds since the epoch.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Status {
    pub(crate) events: u64,
    pub(crate) oldest_position: Option<u64>,
    pub(crate) newest_position: u64,
    pub(crate) settled_through: u64,
    pub(crate) pending: u64,
    pub(crate) oldest_pending_at: Option<u64>,
    pub(crate) deferred: u64,
    pub(crate) dead_letters: u64,
    pub(crate) quarantined: u64,
    pub(crate) bytes_in_use: u64,
}

/// Which rows to list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum List {
    All,
    Pending,
    DeadLetters,
    Quarantined,
}

/// A row for the operator. Times are in milliseconds since the epoch.
#[derive(Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) position: u64,
    pub(crate) at: u64,
    pub(crate) state: &'static str,
    pub(crate) reason: Option<String>,
    pub(crate) sdk_app_id: Option<u64>,
    /// The CloudEvent, or the body of a quarantined callback as it came.
    pub(crate) content: Vec<u8>,
}

/// Clones share one connection, one read at a time.
#[derive(Clone)]
pub(crate) struct Reader {
    connection: Arc<Mutex<Connection>>,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let connection = schema::open_for_reading(path)?;
        Ok(Reader { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs one read on a thread that may block.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reading) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        let reader = self.clone();
        let read = tokio::task::spawn_blocking(move || reader.run_here(read));
        read.await.expect("a read does not panic, and is awaited before the runtime ends")
    }

    /// Runs one read on this thread.
    pub(crate) fn run_here<T>(
        &self,
        read: impl FnOnce(&Reading) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        read(&Reading { connection: &connection })
    }
}

/// The reads there are.
pub(crate) struct Reading<'c> {
    connection: &'c Connection,
}

impl Reading<'_> {
    /// At most `limit` events after a position, in order.
    pub(crate) fn after(&self, position: u64, limit: usize) -> rusqlite::Result<Vec<Stored>> {
        let sql = "SELECT position, accepted_at, event, traceparent FROM events WHERE position > ?1
            ORDER BY position LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![position, limit])?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let stored = stored(row)?;
            bytes += stored.event.len();
            events.push(stored);
            if bytes >= MAX_PAGE_BYTES {
                break;
            }
        }
        Ok(events)
    }

    /// At most `limit` events whose time to be tried again has come, in order.
    pub(crate) fn due(&self, now: u64, limit: usize) -> rusqlite::Result<Vec<Deferred>> {
        let sql = "SELECT position, accepted_at, event, traceparent, attempts FROM deferred JOIN events USING (position)
            WHERE not_before <= ?1 ORDER BY position LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![now, limit], |row| {
            Ok(Deferred { stored: stored(row)?, attempts: row.get(4)? })
        })?;
        rows.collect()
    }

    /// When the next deferred event is due, in milliseconds since the epoch.
    pub(crate) fn next_due(&self) -> rusqlite::Result<Option<u64>> {
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
            Some(oldest) => Ok(oldest - 1),
            None => self.settled_through(),
        }
    }

    /// The position of the newest event, also after it is gone.
    pub(crate) fn newest(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT max(coalesce((SELECT max(position) FROM events), 0), settled_through) FROM relay";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    fn settled_through(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT settled_through FROM relay";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    /// When the oldest event was accepted that is not delivered yet.
    pub(crate) fn oldest_pending_at(&self) -> rusqlite::Result<Option<u64>> {
        let sql = "SELECT min(accepted_at) FROM (
                SELECT accepted_at FROM (SELECT accepted_at FROM events
                    WHERE position > (SELECT settled_through FROM relay) ORDER BY position LIMIT 1)
                UNION ALL
                SELECT accepted_at FROM deferred JOIN events USING (position))";
        self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    pub(crate) fn status(&self) -> rusqlite::Result<Status> {
        let number = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let settled_through = self.settled_through()?;
        let newest_position = self.newest()?;
        let deferred = number("SELECT count(*) FROM deferred")?;
        let page_size = number("PRAGMA page_size")?;
        let pages_in_use = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
        Ok(Status {
            events: number("SELECT count(*) FROM ids")?,
            oldest_position: self.connection.query_row(
                "SELECT min(position) FROM events",
                [],
                |row| row.get(0),
            )?,
            newest_position,
            settled_through,
            pending: newest_position - settled_through + deferred,
            oldest_pending_at: self.oldest_pending_at()?,
            deferred,
            dead_letters: number("SELECT count(*) FROM dead_letters")?,
            quarantined: number("SELECT count(*) FROM quarantine")?,
            bytes_in_use: pages_in_use * page_size,
        })
    }

    /// At most `limit` rows after a position (or a quarantine number), in order.
    pub(crate) fn list(&self, list: List, after: u64, limit: usize) -> rusqlite::Result<Vec<Kept>> {
        let filter = "position > ?1 ORDER BY position LIMIT ?2";
        let sql = match list {
            List::All => format!("{EVENTS} WHERE {filter}"),
            List::Pending => format!(
                "{EVENTS} WHERE (position > (SELECT settled_through FROM relay) OR deferred.reason NOT NULL)
                 AND {filter}"
            ),
            List::DeadLetters => format!("{DEAD_LETTERS} WHERE {filter}"),
            List::Quarantined => format!("{QUARANTINE} WHERE {filter}"),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![after, limit], kept)?;
        rows.collect()
    }

    /// The event at a position, wherever it is.
    pub(crate) fn at(&self, position: u64) -> rusqlite::Result<Option<Kept>> {
        let sql =
            format!("{DEAD_LETTERS} WHERE position = ?1 UNION ALL {EVENTS} WHERE position = ?1");
        self.connection.query_row(&sql, [position], kept).optional()
    }

    /// The quarantined callback of a number.
    pub(crate) fn misfit(&self, number: u64) -> rusqlite::Result<Option<Kept>> {
        let sql = format!("{QUARANTINE} WHERE position = ?1");
        self.connection.query_row(&sql, [number], kept).optional()
    }

    /// The position of the event with an id, looked for where the ids are and in the dead letters.
    pub(crate) fn position_of(&self, id: uuid::Uuid) -> rusqlite::Result<Option<u64>> {
        let sql = "SELECT position FROM ids WHERE first_id = ?1
            UNION ALL SELECT position FROM events WHERE event ->> 'id' = ?2
            UNION ALL SELECT position FROM dead_letters WHERE event ->> 'id' = ?2
            LIMIT 1";
        let row = params![id.as_bytes(), id.to_string()];
        self.connection.query_row(sql, row, |row| row.get(0)).optional()
    }
}

/// Every event that is in the queue or in the history, with its state.
const EVENTS: &str = "
    SELECT position, accepted_at, CASE
            WHEN deferred.reason NOT NULL THEN 'deferred'
            WHEN dead.position NOT NULL THEN 'dead'
            WHEN position > (SELECT settled_through FROM relay) THEN 'pending'
            ELSE 'delivered' END AS state,
        coalesce(deferred.reason, dead.reason) AS reason, NULL AS sdk_app_id, event AS content
    FROM events LEFT JOIN deferred USING (position)
        LEFT JOIN (SELECT position, reason FROM dead_letters) AS dead USING (position)";

const DEAD_LETTERS: &str = "
    SELECT position, accepted_at, 'dead' AS state, reason, NULL AS sdk_app_id, event AS content
    FROM dead_letters";

const QUARANTINE: &str = "
    SELECT position, received_at, 'quarantined' AS state, reason, sdk_app_id, body AS content
    FROM (SELECT number AS position, * FROM quarantine)";

fn kept(row: &Row) -> rusqlite::Result<Kept> {
    let state = match row.get_ref(2)?.as_str()? {
        "deferred" => "deferred",
        "dead" => "dead",
        "pending" => "pending",
        "quarantined" => "quarantined",
        _ => "delivered",
    };
    Ok(Kept {
        position: row.get(0)?,
        at: row.get(1)?,
        state,
        reason: row.get(3)?,
        sdk_app_id: row.get(4)?,
        content: row.get_ref(5)?.as_bytes()?.to_vec(),
    })
}

fn stored(row: &Row) -> rusqlite::Result<Stored> {
    Ok(Stored {
        position: row.get(0)?,
        accepted_at: row.get(1)?,
        event: row.get(2)?,
        traceparent: row.get(3)?,
    })
}
