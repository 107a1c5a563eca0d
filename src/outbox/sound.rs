//! Whether the few numbers that everything else rests on can be what the bridge wrote: a watermark that is too
//! high would pass over events in silence, and a position that is too high would leave a gap without an end.

use std::path::Path;

use rusqlite::{Connection, ffi};

use super::row::sum_of_watermark;

/// More events than this do not vanish from a file that is otherwise whole: a position is damaged, or a large
/// part of a table.
pub(super) const MAX_MISSING: u64 = 100_000;

/// A file this large is checked in some tenths of a second.
const MAX_CHECKED: u64 = 64 << 20;

/// `relay.settled_through`, if it is what was written.
pub(super) fn watermark(connection: &Connection) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached("SELECT settled_through, checksum FROM relay")?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0).unwrap_or(u64::MAX), row.get(1).unwrap_or(-1))))?;
    match rows.collect::<rusqlite::Result<Vec<(u64, i64)>>>()?[..] {
        [(through, sum)] if sum == i64::from(sum_of_watermark(through)) => Ok(through),
        [(through, _)] => Err(damaged(format!(
            "the watermark (settled_through in table relay) is {through}, and its checksum is of another number"
        ))),
        [] => Err(damaged("the watermark (the row in table relay) is missing".into())),
        _ => Err(damaged("the watermark (table relay) has more than one row".into())),
    }
}

/// The last position assigned. An event and its topic's id are written together, and only the oldest of each
/// are removed, so both tables end at the same position, if any of it is left.
pub(super) fn newest(connection: &Connection, settled_through: u64) -> rusqlite::Result<u64> {
    let last = |table: &str| {
        let sql = format!("SELECT coalesce(max(position), 0) FROM {table}");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0))
    };
    let (event, id) = (last("events")?, last("ids")?);
    let range = 0..i64::MAX / 2;
    let settled = i64::try_from(settled_through).unwrap_or(i64::MAX);
    let others = match event {
        0 => settled,
        _ => event.max(settled),
    };
    let is_near = |position: i64| position.abs_diff(others) <= MAX_MISSING;
    if ![event, id, settled].iter().all(|position| range.contains(position))
        || id > others && !is_near(id)
        || event > settled && id > 0 && id < event && !is_near(id)
    {
        return Err(damaged(format!(
            "the last position is {event} in table events, {id} in table ids, and {settled_through} is \
             settled: these contradict each other"
        )));
    }
    Ok(event.max(id).max(settled).cast_unsigned())
}

/// Counts the deferred events, once by their index and once by themselves: one that had vanished would not be
/// missed by anything else.
pub(super) fn deferred(connection: &Connection) -> rusqlite::Result<u64> {
    let count = |how: &str| {
        let sql = format!("SELECT count(*) FROM deferred {how}");
        connection.query_row(&sql, [], |row| row.get::<_, u64>(0))
    };
    let (listed, kept) =
        (count("INDEXED BY deferred_due WHERE not_before > -1")?, count("NOT INDEXED")?);
    if listed != kept {
        return Err(damaged(format!(
            "table deferred holds {kept} events, and its index lists {listed}"
        )));
    }
    Ok(kept)
}

/// At a start, the pages of a file that is not too large for that are checked. What is damaged is told, and used as
/// far as it goes.
pub(super) fn check_pages(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    let size = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    if size("page_count")? * size("page_size")? > MAX_CHECKED {
        return Ok(());
    }
    let found = pages(connection, 10).unwrap_or_else(|error| vec![error.to_string()]);
    if !found.is_empty() {
        let path = path.display();
        tracing::error!(
            %path, found = found.join("; "),
            "the outbox is damaged: check the disk, see what is missing with `topic-bridge outbox check`, and save what \
             can be read with `topic-bridge outbox salvage {path}.new`"
        );
    }
    Ok(())
}

/// What SQLite finds wrong with the pages, at most so much.
pub(super) fn pages(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({limit})"))?;
    let texts = statement.query_map([], |row| row.get::<_, String>(0))?;
    let texts = texts.collect::<rusqlite::Result<Vec<_>>>()?;
    let lines = texts.iter().flat_map(|text| text.lines());
    let is_said = |line: &&str| *line != "ok" && !line.starts_with("***");
    Ok(lines.filter(is_said).map(str::to_owned).collect())
}

/// As SQLite says it of a damaged page, so that the same advice goes with it.
fn damaged(what: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what))
}
