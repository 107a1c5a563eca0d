//! Every row of a table that can be read, around the pages that cannot: upwards to the damage, downwards to it, and
//! then the rows between by halves.

use std::collections::{BTreeSet, VecDeque};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// The most numbers that are tried one by one in a damaged part; the wider parts are tried first.
const MAX_TRIES: usize = 200_000;

/// Reads a table's rows, numbered by `key` up to about `end`, each once, in no certain order. Returns which
/// numbers, from and to, cannot be read.
pub(super) fn walk(
    connection: &Connection,
    table: &str,
    columns: &str,
    key: &str,
    end: u64,
    mut see: impl FnMut(&Row) -> rusqlite::Result<()>,
) -> rusqlite::Result<Vec<(u64, u64)>> {
    let between =
        format!("SELECT {columns} FROM {table} WHERE {key} > ?1 AND {key} < ?2 ORDER BY {key}");
    let mut walk = Walk {
        connection,
        up: between.clone(),
        down: format!("{between} DESC"),
        next: format!(
            "SELECT {key} FROM {table} WHERE {key} >= ?1 AND {key} < ?2 ORDER BY {key} LIMIT 1"
        ),
        seen: BTreeSet::new(),
        holes: Vec::new(),
        see: &mut see,
    };
    let first = walk.read(true, 0, i64::MAX)?;
    if first.is_whole {
        return Ok(Vec::new());
    }
    let low = first.last.unwrap_or(0);
    let last = walk.read(false, low, i64::MAX)?;
    let end = i64::try_from(end).unwrap_or(i64::MAX - 1).saturating_add(1);
    let high = last.last.unwrap_or(end.max(low + 1));
    walk.between(low, high)?;
    Ok(walk.unreadable(end))
}

struct Walk<'w> {
    connection: &'w Connection,
    up: String,
    down: String,
    next: String,
    seen: BTreeSet<i64>,
    /// Numbers that were tried and could not be read.
    holes: Vec<i64>,
    see: &'w mut dyn FnMut(&Row) -> rusqlite::Result<()>,
}

struct Read {
    /// The number of the last row that could be read.
    last: Option<i64>,
    is_whole: bool,
}

impl Walk<'_> {
    /// Reads the rows between two numbers as far as they can be read. An error is one of whoever sees them.
    fn read(&mut self, is_upwards: bool, low: i64, high: i64) -> rusqlite::Result<Read> {
        let broken = |last| Ok(Read { last, is_whole: false });
        let sql = if is_upwards { &self.up } else { &self.down };
        let Ok(mut statement) = self.connection.prepare_cached(sql) else { return broken(None) };
        let Ok(mut rows) = statement.query(params![low, high]) else { return broken(None) };
        let mut last = None;
        loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let Ok(number) = row.get::<_, i64>(0) else { return broken(last) };
                    last = Some(number);
                    if self.seen.insert(number) {
                        (self.see)(row)?;
                    }
                }
                Ok(None) => return Ok(Read { last, is_whole: true }),
                Err(_) => return broken(last),
            }
        }
    }

    /// What is readable between two rows, with damage at both ends.
    fn between(&mut self, low: i64, high: i64) -> rusqlite::Result<()> {
        let mut parts = VecDeque::from([(low, high)]);
        let mut tries = 0;
        while let Some((low, high)) = parts.pop_front() {
            if high - low <= 1 || tries == MAX_TRIES {
                continue;
            }
            tries += 1;
            let middle = low + (high - low) / 2;
            match self.next(middle, high) {
                Ok(None) => parts.push_back((low, middle)),
                Ok(Some(found)) => {
                    let up = self.read(true, found - 1, high)?;
                    let down = self.read(false, low, found)?;
                    if !down.is_whole {
                        parts.push_back((low, down.last.unwrap_or(found)));
                    }
                    if !up.is_whole {
                        parts.push_back((up.last.unwrap_or(found), high));
                    }
                }
                Err(_) => {
                    self.holes.push(middle);
                    parts.extend([(low, middle), (middle, high)]);
                }
            }
        }
        Ok(())
    }

    fn next(&self, from: i64, high: i64) -> rusqlite::Result<Option<i64>> {
        let mut statement = self.connection.prepare_cached(&self.next)?;
        statement.query_row(params![from, high], |row| row.get(0)).optional()
    }

    /// The numbers around each hole that no row was read of.
    fn unreadable(&self, end: i64) -> Vec<(u64, u64)> {
        let around = |hole: &i64| {
            let below = self.seen.range(..*hole).next_back().map_or(1, |below| below + 1);
            let above =
                self.seen.range(*hole..).next().map_or(end.max(*hole + 1), |above| *above) - 1;
            (below.max(0).cast_unsigned(), above.max(0).cast_unsigned())
        };
        self.holes.iter().map(around).collect::<BTreeSet<_>>().into_iter().collect()
    }
}
