//! What an operator reads from the outbox: counts, lists, and single rows.

use std::borrow::Cow;

use rusqlite::{OptionalExtension, Row, params};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::Quarantined;
use super::reader::Reading;
use super::row::{CALLBACK, COLUMNS, Stored};
use crate::event::Origin;
use crate::time::Timestamp;

/// Counts and sizes of what the outbox holds.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Status {
    pub(crate) events: u64,
    pub(crate) oldest_position: Option<u64>,
    pub(crate) newest_position: u64,
    pub(crate) settled_through: u64,
    pub(crate) pending: u64,
    /// In milliseconds.
    #[serde(serialize_with = "as_millis")]
    pub(crate) oldest_pending_at: Option<Timestamp>,
    pub(crate) deferred: u64,
    pub(crate) dead_letters: u64,
    pub(crate) quarantined: u64,
    pub(crate) bytes_in_use: u64,
}

fn as_millis<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(Timestamp::as_millis).serialize(serializer)
}

/// Which rows to list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum List {
    All,
    Pending,
    Delivered,
    DeadLetters,
    Quarantined,
}

/// A row as shown to the operator.
#[derive(Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) position: u64,
    pub(crate) at: Timestamp,
    pub(crate) state: &'static str,
    pub(crate) reason: Option<String>,
    /// Of a quarantined callback.
    pub(crate) from: Option<Origin<'static>>,
    /// The CloudEvent, or the body of a quarantined callback exactly as received. For a damaged event,
    /// its data as it is now.
    pub(crate) content: Vec<u8>,
}

impl Reading<'_> {
    pub(crate) fn status(&self) -> rusqlite::Result<Status> {
        let number = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let settled_through = self.settled_through()?;
        let newest_position = self.newest()?;
        let deferred = number("SELECT count(*) FROM deferred")?;
        let page_size = number("PRAGMA page_size")?;
        let pages_in_use = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
        Ok(Status {
            events: number("SELECT count(*) FROM events")?,
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
        let (filter, order) = ("position > ?1", "ORDER BY position LIMIT ?2");
        let sql = match list {
            List::Quarantined => {
                format!("{} WHERE number > ?1 ORDER BY number LIMIT ?2", quarantine())
            }
            list => format!("{} {order}", rows_of(list, filter)),
        };
        let lift = if list == List::Quarantined { quarantined } else { kept };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![after, limit], lift)?;
        rows.collect()
    }

    /// The event at a position, whichever table it is in.
    pub(crate) fn at(&self, position: u64) -> rusqlite::Result<Option<Kept>> {
        let sql = everything("position = ?1");
        self.connection.query_row(&sql, [position], kept).optional()
    }

    /// The quarantined callback with this number.
    pub(crate) fn quarantined(&self, number: u64) -> rusqlite::Result<Option<Kept>> {
        let sql = format!("{} WHERE number = ?1", quarantine());
        self.connection.query_row(&sql, [number], quarantined).optional()
    }

    /// The position of the event with an id.
    pub(crate) fn position_of(&self, id: Uuid) -> rusqlite::Result<Option<u64>> {
        let sql = format!("SELECT position FROM ({}) LIMIT 1", everything("id = ?1"));
        self.connection.query_row(&sql, [id.as_bytes()], |row| row.get(0)).optional()
    }
}

/// The events of a list, which quarantined callbacks are not.
pub(super) fn rows_of(list: List, filter: &str) -> String {
    match list {
        List::All => everything(filter),
        List::Pending => pending(filter),
        List::Delivered => delivered(filter),
        List::DeadLetters | List::Quarantined => dead_letters(filter),
    }
}

/// Deferred events and dead letters have their own state, and their own copy; all others are in the
/// queue. Each part comes in its table's order, so no list has to be sorted.
fn everything(filter: &str) -> String {
    format!(
        "{} UNION ALL {} UNION ALL
         SELECT {COLUMNS}, CASE WHEN position > (SELECT settled_through FROM relay)
             THEN 'pending' ELSE 'delivered' END AS state, NULL AS reason
         FROM events WHERE {filter} AND position NOT IN (SELECT position FROM deferred)
             AND position NOT IN (SELECT position FROM dead_letters)",
        deferred(filter),
        dead_letters(filter),
    )
}

fn pending(filter: &str) -> String {
    format!(
        "{} UNION ALL SELECT {COLUMNS}, 'pending' AS state, NULL AS reason
         FROM events WHERE {filter} AND position > (SELECT settled_through FROM relay)",
        deferred(filter),
    )
}

fn delivered(filter: &str) -> String {
    format!(
        "SELECT {COLUMNS}, 'delivered' AS state, NULL AS reason
         FROM events WHERE {filter} AND position <= (SELECT settled_through FROM relay)
             AND position NOT IN (SELECT position FROM deferred)
             AND position NOT IN (SELECT position FROM dead_letters)"
    )
}

fn deferred(filter: &str) -> String {
    format!("SELECT {COLUMNS}, 'deferred' AS state, reason FROM deferred WHERE {filter}")
}

fn dead_letters(filter: &str) -> String {
    format!("SELECT {COLUMNS}, 'dead' AS state, reason FROM dead_letters WHERE {filter}")
}

fn quarantine() -> String {
    format!("SELECT {CALLBACK} FROM quarantine")
}

fn kept(row: &Row) -> rusqlite::Result<Kept> {
    let state = match row.get_ref("state")?.as_str()? {
        "deferred" => "deferred",
        "dead" => "dead",
        "pending" => "pending",
        _ => "delivered",
    };
    let reason: Option<String> = row.get("reason")?;
    let (reason, content) = match Stored::read(row, 0)? {
        Ok(stored) => (reason, stored.event.structured().into_bytes()),
        Err(damaged) => {
            let data = row.get_ref("data")?.as_bytes().unwrap_or_default();
            (reason.or(Some(damaged.reason)), data.to_vec())
        }
    };
    let at = row.get("accepted_at").unwrap_or_default();
    Ok(Kept { position: row.get("position")?, at, state, reason, from: None, content })
}

/// A damaged one is shown as it is now, and says so.
fn quarantined(row: &Row) -> rusqlite::Result<Kept> {
    if Quarantined::read(row).is_none() {
        let body = row.get_ref("body")?;
        return Ok(Kept {
            position: row.get("number")?,
            at: row.get("received_at").unwrap_or_default(),
            state: "quarantined",
            reason: Some("the stored callback is damaged: its checksum does not match".into()),
            from: None,
            content: body.as_bytes().unwrap_or_default().to_vec(),
        });
    }
    let text = |name| row.get::<_, Option<String>>(name).map(|text| text.map(Cow::Owned));
    Ok(Kept {
        position: row.get("number")?,
        at: row.get("received_at")?,
        state: "quarantined",
        reason: row.get("reason")?,
        from: Some(Origin {
            sdk_app_id: row.get::<_, i64>("sdk_app_id")?.cast_unsigned(),
            client_ip: text("client_ip")?,
            client_platform: text("client_platform")?,
        }),
        content: row.get_ref("body")?.as_bytes()?.to_vec(),
    })
}
