//! What an act is about, page by page, on a reader's connection.

use std::collections::HashSet;

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension as _, Row, params};

use super::super::lists::{List, rows_of};
use super::super::reader::Reading;
use super::super::row::CALLBACK;
use super::super::{Quarantined, ReadResult, Reader};
use super::order::{Filter, Looked};

/// Rows that are looked at in one read, and so the most that one step changes.
const PAGE: usize = 500;

/// Ids that are read at a time.
const IDS_PAGE: usize = 10_000;

/// Some of the rows that match.
pub(crate) struct Page {
    /// Positions, or numbers.
    pub(crate) matches: Vec<u64>,
    /// Where the next page begins, if there may be one.
    pub(crate) next: Option<u64>,
}

impl Reading<'_> {
    /// The rows after a position that match, as far as one read looks.
    pub(crate) fn matching(
        &self,
        list: List,
        filter: &Filter,
        after: u64,
    ) -> rusqlite::Result<Page> {
        // One that is named is looked for where it must be.
        let after = filter.position.map_or(after, |named| after.max(named.saturating_sub(1)));
        let sql = match list {
            List::Quarantined => "SELECT number, received_at, NULL, NULL, reason FROM quarantine
                 WHERE number > ?1 ORDER BY number LIMIT ?2"
                .to_owned(),
            list => format!(
                "SELECT position, accepted_at, id, topic_id, reason FROM ({} ORDER BY position LIMIT ?2)",
                rows_of(list, "position > ?1")
            ),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, PAGE])?;
        let (mut matches, mut looked, mut last) = (Vec::new(), 0, after);
        while let Some(row) = rows.next()? {
            last = row.get(0)?;
            looked += 1;
            if filter.position.is_some_and(|named| last > named) {
                return Ok(Page { matches, next: None });
            }
            if filter.matches(&look(row, last)?) {
                matches.push(last);
            }
        }
        Ok(Page { matches, next: (looked == PAGE).then_some(last) })
    }

    pub(super) fn newest_quarantined(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT coalesce(max(number), 0) FROM quarantine";
        self.connection.query_row(sql, [], |row| row.get(0))
    }

    /// A quarantined callback with all that it brought, if it is still there and (inside) not damaged.
    pub(super) fn quarantined_callback(
        &self,
        number: u64,
    ) -> rusqlite::Result<Option<Option<Quarantined>>> {
        let sql = format!("SELECT {CALLBACK} FROM quarantine WHERE number = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_row([number], |row| Ok(Quarantined::read(row))).optional()
    }

    /// Adds the ids of a table's rows after a position, and returns the last of these.
    fn ids_after(
        &self,
        table: &str,
        after: u64,
        known: &mut Known,
    ) -> rusqlite::Result<Option<u64>> {
        let sql = format!(
            "SELECT position, id FROM {table} WHERE position > ?1 ORDER BY position LIMIT ?2"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, IDS_PAGE])?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            last = Some(row.get(0)?);
            known.insert(bytes(row, 1)?);
        }
        Ok(last)
    }
}

/// A damaged value matches nothing, and is no reason to leave the row out.
fn look<'r>(row: &'r Row, position: u64) -> rusqlite::Result<Looked<'r>> {
    let at = row.get(1).unwrap_or_default();
    let (id, topic, reason) = (bytes(row, 2)?, bytes(row, 3)?, bytes(row, 4)?);
    Ok(Looked { position, at, id, topic, reason })
}

fn bytes<'r>(row: &'r Row, at: usize) -> rusqlite::Result<&'r [u8]> {
    Ok(match row.get_ref(at)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    })
}

/// The ids of all events that an outbox holds: half of each is enough, because they are hashes.
#[derive(Default)]
pub(super) struct Known(HashSet<u64>);

impl Known {
    pub(super) async fn read(reader: &Reader) -> ReadResult<Self> {
        let mut known = Known::default();
        for table in ["events", "deferred", "dead_letters"] {
            let mut after = 0;
            loop {
                let read = reader.run(move |reading| {
                    let last = reading.ids_after(table, after, &mut known)?;
                    Ok((known, last))
                });
                let last;
                (known, last) = read.await?;
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
        }
        Ok(known)
    }

    /// Returns whether it is new.
    pub(super) fn insert(&mut self, id: &[u8]) -> bool {
        match id.last_chunk::<8>() {
            Some(half) => self.0.insert(u64::from_le_bytes(*half)),
            None => true, // a damaged id is nobody's
        }
    }
}
