//! An event as a row: the same columns in the queue, the deferred events and the dead letters. Each row
//! carries a checksum of its values, so that data altered on the disk is detected, not delivered.

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Row, Transaction, params};
use uuid::Uuid;

use super::Quarantined;
use crate::message::Envelope;
use crate::time::Timestamp;
use crate::trace::TraceContext;

/// All columns of an event, in the order that [`Stored::read`] expects.
pub(super) const COLUMNS: &str = "position, steady_at, accepted_at, id, sdk_app_id, type, source, time, \
     topic_id, group_id, platform, data, traceparent, checksum";

/// The declarations of these columns.
pub(super) const DECLARATION: &str = "
        position    INTEGER PRIMARY KEY,   -- the event's number in the order of acceptance
        steady_at   INTEGER NOT NULL,      -- when it was accepted, by a clock that nobody sets
        accepted_at INTEGER NOT NULL,      -- …and by the wall's, as it stands in the event
        id          BLOB NOT NULL,
        sdk_app_id  INTEGER NOT NULL,
        type        TEXT NOT NULL,
        source      TEXT NOT NULL,
        time        INTEGER NOT NULL,
        topic_id    TEXT NOT NULL,
        group_id    TEXT NOT NULL,
        platform    TEXT,
        data        TEXT NOT NULL,         -- the CloudEvent's data, as JSON
        traceparent TEXT,                  -- as the callback brought it
        -- CRC-32 of the others
        checksum    INTEGER NOT NULL";

/// An event in the outbox.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// Its number in the order of acceptance.
    pub(crate) position: u64,
    pub(crate) steady_at: Timestamp,
    pub(crate) accepted_at: Timestamp,
    pub(crate) event: Envelope,
    /// The W3C trace context that the callback brought.
    pub(crate) traceparent: Option<String>,
}

/// A row that differs from what was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Damaged {
    pub(crate) position: u64,
    pub(crate) reason: String,
}

/// What is stored at a position.
pub(crate) type Slot = Result<Stored, Damaged>;

/// The position of a slot, whatever is in it.
pub(crate) fn position(slot: &Slot) -> u64 {
    match slot {
        Ok(Stored { position, .. }) | Err(Damaged { position, .. }) => *position,
    }
}

impl Stored {
    /// The trace that the callback brought or began, if it did.
    pub(crate) fn brought(&self) -> Option<TraceContext> {
        self.traceparent.as_deref().and_then(TraceContext::parse)
    }

    /// The trace that the event belongs to.
    pub(crate) fn trace(&self) -> TraceContext {
        self.brought().unwrap_or_else(|| TraceContext::of_event(self.event.id))
    }

    /// Reads [`COLUMNS`], starting at column `first`. An error concerns the file, not the row.
    pub(super) fn read(row: &Row, first: usize) -> rusqlite::Result<Slot> {
        let position = row.get(first)?;
        let damaged = |reason: String| Damaged { position, reason };
        Ok(Self::check(row, first, position).map_err(damaged))
    }

    fn check(row: &Row, first: usize, position: u64) -> Result<Stored, String> {
        let value = |at: usize| row.get_ref(first + at).map_err(|error| error.to_string());
        let number = |at: usize| match value(at)? {
            ValueRef::Integer(number) => Ok(number.cast_unsigned()),
            _ => Err(altered("is not a number", at)),
        };
        let text = |at: usize| match value(at)? {
            ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(altered("is not valid UTF-8", at)),
            },
            ValueRef::Null => Ok(None),
            _ => Err(altered("is not text", at)),
        };
        let needed = |at: usize| text(at)?.ok_or_else(|| altered("is missing", at));
        let id = match value(3)? {
            ValueRef::Blob(bytes) => Uuid::from_slice(bytes).ok(),
            _ => None,
        };
        let stored = Stored {
            position,
            steady_at: Timestamp::from_millis(number(1)?),
            accepted_at: Timestamp::from_millis(number(2)?),
            event: Envelope {
                id: id.ok_or_else(|| altered("is not an id", 3))?,
                sdk_app_id: number(4)?,
                event_type: needed(5)?,
                source: needed(6)?,
                time: Timestamp::from_millis(number(7)?),
                topic_id: needed(8)?,
                group_id: needed(9)?,
                platform: text(10)?,
                data: needed(11)?,
            },
            traceparent: text(12)?,
        };
        if number(13)? != u64::from(stored.values().checksum()) {
            return Err(
                "the stored event is damaged: its checksum does not match, check the disk".into()
            );
        }
        Ok(stored)
    }

    /// The row of a structured event.
    #[cfg(test)]
    pub(crate) fn of(position: u64, accepted_at: Timestamp, json: &str) -> Self {
        let event = Envelope::open(json).unwrap();
        Stored { position, steady_at: accepted_at, accepted_at, event, traceparent: None }
    }

    /// The values of its row.
    pub(super) fn values(&self) -> Values<'_> {
        Values {
            position: self.position,
            steady_at: self.steady_at,
            accepted_at: self.accepted_at,
            id: self.event.id,
            event: &self.event,
            traceparent: self.traceparent.as_deref(),
        }
    }
}

/// The values of a row to be inserted, except its checksum.
pub(super) struct Values<'e> {
    pub(super) position: u64,
    pub(super) steady_at: Timestamp,
    pub(super) accepted_at: Timestamp,
    /// Replaces the event's own id.
    pub(super) id: Uuid,
    pub(super) event: &'e Envelope,
    pub(super) traceparent: Option<&'e str>,
}

impl Values<'_> {
    /// Each value is summed with its length, so that no two rows sum the same text.
    pub(super) fn checksum(&self) -> u32 {
        let Values { position, steady_at, accepted_at, id, event, traceparent } = self;
        let mut summed = Vec::with_capacity(event.data.len() + 512); // many small sums cost more
        let times = [*steady_at, *accepted_at, event.time].map(Timestamp::as_millis);
        let [steady_at, accepted_at, time] = times;
        for number in [*position, steady_at, accepted_at, event.sdk_app_id, time] {
            summed.extend(number.to_le_bytes());
        }
        summed.extend(id.as_bytes());
        let texts = [
            Some(&*event.event_type),
            Some(&*event.source),
            Some(&*event.topic_id),
            Some(&*event.group_id),
            event.platform.as_deref(),
            Some(&*event.data),
            *traceparent,
        ];
        for text in texts {
            summed.extend(text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            summed.extend(text.unwrap_or_default().as_bytes());
        }
        crc32fast::hash(&summed)
    }

    /// Roughly how many bytes of the file the row takes.
    pub(super) fn cost(&self) -> u64 {
        let event = self.event;
        let texts =
            [&event.event_type, &event.source, &event.topic_id, &event.group_id, &event.data];
        texts.into_iter().map(|text| text.len() as u64).sum::<u64>() + OVERHEAD
    }

    /// Inserts the row with a statement from [`inserting`].
    pub(super) fn insert(&self, statement: &mut CachedStatement) -> rusqlite::Result<usize> {
        let Values { position, steady_at, accepted_at, id, event, traceparent } = self;
        statement.execute(params![
            position.cast_signed(),
            steady_at,
            accepted_at,
            id.as_bytes(),
            event.sdk_app_id.cast_signed(),
            event.event_type,
            event.source,
            event.time,
            event.topic_id,
            event.group_id,
            event.platform,
            event.data,
            traceparent,
            self.checksum(),
        ])
    }
}

/// The checksum that stands beside the watermark: one that is too high would pass over events in silence.
pub(super) fn sum_of_watermark(settled_through: u64) -> u32 {
    crc32fast::hash(&settled_through.to_le_bytes())
}

impl Quarantined {
    /// Each value is summed with its length, as those of an event are.
    pub(super) fn checksum(&self) -> u32 {
        let mut summed = Vec::with_capacity(self.body.len() + 256);
        for number in [self.received_at.as_millis(), self.sdk_app_id] {
            summed.extend(number.to_le_bytes());
        }
        let texts = [
            self.client_ip.as_deref().map(str::as_bytes),
            self.client_platform.as_deref().map(str::as_bytes),
            Some(self.reason.as_bytes()),
            Some(&*self.body),
        ];
        for text in texts {
            summed.extend(text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            summed.extend(text.unwrap_or_default());
        }
        crc32fast::hash(&summed)
    }

    /// Reads [`CALLBACK`] from the second column on. `None` if it is not what was written.
    pub(super) fn read(row: &Row) -> Option<Self> {
        let sum: u32 = row.get(7).ok()?;
        Self::lift(row).filter(|callback| callback.checksum() == sum)
    }

    /// The same, whatever the checksum is.
    pub(super) fn lift(row: &Row) -> Option<Self> {
        Some(Quarantined {
            received_at: row.get(1).ok()?,
            sdk_app_id: row.get::<_, i64>(2).ok()?.cast_unsigned(),
            client_ip: row.get(3).ok()?,
            client_platform: row.get(4).ok()?,
            reason: row.get(5).ok()?,
            body: row.get(6).ok()?,
        })
    }
}

/// All columns of a quarantined callback, as [`Quarantined::read`] expects them.
pub(super) const CALLBACK: &str =
    "number, received_at, sdk_app_id, client_ip, client_platform, reason, body, checksum";

/// In milliseconds.
impl ToSql for Timestamp {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(i64::try_from(self.as_millis()).unwrap_or(i64::MAX).into())
    }
}

impl FromSql for Timestamp {
    fn column_result(value: ValueRef) -> FromSqlResult<Self> {
        i64::column_result(value).map(|number| Timestamp::from_millis(number.cast_unsigned()))
    }
}

/// What a row costs in addition to its texts.
pub(super) const OVERHEAD: u64 = 80;

fn altered(how: &str, at: usize) -> String {
    let name = COLUMNS.split(", ").nth(at).unwrap_or_default();
    format!("the stored event is damaged: its {name} {how}, check the disk")
}

pub(super) fn inserting<'t>(
    transaction: &'t Transaction,
    table: &str,
) -> rusqlite::Result<CachedStatement<'t>> {
    transaction.prepare_cached(&format!(
        "INSERT INTO {table} ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
    ))
}
