//! Which topics were created before, and when most recently. The table `ids` remembers them for longer
//! than the history does. In memory each takes some twenty bytes: part of its hash, and the position of
//! its row, which is read when the hash matches.

use std::mem;
use std::time::Duration;

use hashbrown::HashTable;
use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use crate::time::Timestamp;

/// Roughly what a row of the table takes in the file. Ids have their own limit, so they do not count
/// towards `outbox.max_bytes`.
pub(super) const ROW_BYTES: u64 = 36;

/// The most rows that one transaction forgets.
const FORGET_AT_ONCE: u64 = 1024;

#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Never,
    /// The platform's retry, not another event. The position is that of the event.
    InsideWindow(u64),
    /// The topic was deleted and recreated: another event. The position is that of the previous one.
    BeforeWindow(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    hash: u32,
    /// The low half is enough: no two positions in the table are 2^32 apart.
    position: u32,
}

/// Times are on the steady clock and compared by their distance, so that one from a run whose clock was
/// wrong does not count forever.
pub(super) struct Ids {
    window: Duration,
    remember: Duration,
    max: u64,
    table: HashTable<Entry>,
    /// Changes made by the open transaction, to be undone if it fails.
    staged: Vec<Change>,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Added(Entry),
    Removed(Entry),
}

impl Ids {
    pub(super) fn new(window: Duration, remember: Duration, max: u64) -> Self {
        let remember = remember.max(window);
        Ids { window, remember, max, table: HashTable::new(), staged: Vec::new() }
    }

    /// A time in the future comes from a run whose clock was ahead. It is moved back just far enough that
    /// a repeat counts as another creation; the id is still remembered, but no longer than others.
    pub(super) fn load(&mut self, connection: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        let (far_ahead, past) = (now + self.window, now - self.window);
        let sql = "UPDATE ids SET steady_at = ?2 WHERE steady_at > ?1";
        connection.execute(sql, [far_ahead, past])?;
        let mut statement =
            connection.prepare("SELECT position, first_id FROM ids ORDER BY position")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            // An id of the wrong length is damaged and cannot match anything.
            let Ok(first_id) = Uuid::from_slice(row.get_ref(1)?.as_bytes().unwrap_or_default())
            else {
                continue;
            };
            self.add(entry(first_id, row.get(0)?));
        }
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.table.len() as u64
    }

    /// Whether a topic was created before. `newest` is the last position assigned.
    pub(super) fn seen(
        &self,
        connection: &Connection,
        first_id: Uuid,
        now: Timestamp,
        newest: u64,
    ) -> rusqlite::Result<Seen> {
        let hash = hash(first_id);
        for found in self.table.iter_hash(spread(hash)).filter(|found| found.hash == hash) {
            let position = newest - u64::from((newest as u32).wrapping_sub(found.position));
            let sql = "SELECT steady_at FROM ids WHERE position = ?1 AND first_id = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let row = params![position, first_id.as_bytes()];
            let at: Option<Timestamp> = statement.query_row(row, |row| row.get(0)).optional()?;
            match at {
                None => {} // another id with the same hash
                Some(at) if now.distance(at) < self.window => {
                    return Ok(Seen::InsideWindow(position));
                }
                Some(_) => return Ok(Seen::BeforeWindow(position)),
            }
        }
        Ok(Seen::Never)
    }

    /// Remembers a topic's creation in place of its previous one. Permanent after [`Ids::commit`].
    pub(super) fn remember(
        &mut self,
        connection: &Connection,
        first_id: Uuid,
        position: u64,
        now: Timestamp,
        before: Option<u64>,
    ) -> rusqlite::Result<()> {
        let sql = "INSERT INTO ids (position, first_id, steady_at) VALUES (?1, ?2, ?3)";
        let row = params![position, first_id.as_bytes(), now];
        connection.prepare_cached(sql)?.execute(row)?;
        if let Some(before) = before {
            connection.prepare_cached("DELETE FROM ids WHERE position = ?1")?.execute([before])?;
            self.remove(entry(first_id, before));
        }
        let added = entry(first_id, position);
        self.add(added);
        self.staged.push(Change::Added(added));
        Ok(())
    }

    /// Whether any ids are older, or there are more of them, than the configuration asks to remember.
    pub(super) fn has_surplus(
        &self,
        connection: &Connection,
        now: Timestamp,
    ) -> rusqlite::Result<bool> {
        if self.len() > self.max {
            return Ok(true);
        }
        let oldest: Option<Timestamp> = connection
            .prepare_cached("SELECT steady_at FROM ids ORDER BY position LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(oldest.is_some_and(|at| now.distance(at) >= self.remember))
    }

    /// Forgets some of the surplus, oldest first.
    pub(super) fn forget(
        &mut self,
        connection: &Connection,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let surplus = self.len().saturating_sub(self.max).min(FORGET_AT_ONCE);
        let sql = "SELECT position, first_id, steady_at FROM ids ORDER BY position LIMIT ?1";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([FORGET_AT_ONCE])?;
        let (mut last, mut forgotten) = (None, 0);
        while let Some(row) = rows.next()? {
            let at: Timestamp = row.get(2)?;
            if forgotten >= surplus && now.distance(at) < self.remember {
                break;
            }
            let position = row.get(0)?;
            if let Ok(first_id) = Uuid::from_slice(row.get_ref(1)?.as_bytes().unwrap_or_default()) {
                self.remove(entry(first_id, position));
            }
            forgotten += 1;
            last = Some(position);
        }
        drop(rows);
        let sql = "DELETE FROM ids WHERE position <= ?1";
        connection.prepare_cached(sql)?.execute([last.unwrap_or(0)])?;
        Ok(())
    }

    pub(super) fn commit(&mut self) {
        self.staged.clear();
    }

    pub(super) fn roll_back(&mut self) {
        for change in mem::take(&mut self.staged).into_iter().rev() {
            match change {
                Change::Added(entry) => self.take_out(entry),
                Change::Removed(entry) => self.add(entry),
            }
        }
    }

    fn add(&mut self, entry: Entry) {
        self.table.insert_unique(spread(entry.hash), entry, |entry| spread(entry.hash));
    }

    fn remove(&mut self, entry: Entry) {
        self.take_out(entry);
        self.staged.push(Change::Removed(entry));
    }

    fn take_out(&mut self, entry: Entry) {
        if let Ok(found) = self.table.find_entry(spread(entry.hash), |found| *found == entry) {
            found.remove();
        }
    }
}

fn entry(first_id: Uuid, position: u64) -> Entry {
    Entry { hash: hash(first_id), position: position as u32 }
}

/// A UUIDv5 is a hash, except for its version and variant bits, which are not in this part.
fn hash(id: Uuid) -> u32 {
    let bytes = id.as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The hash table uses the highest and the lowest bits.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::from_millis(milliseconds)
    }

    /// The table alone, and a clock that the test holds.
    struct Bench {
        connection: Connection,
        ids: Ids,
        position: u64,
    }

    impl Bench {
        fn new(window: u64, remember: u64, max: u64) -> Self {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(&super::super::schema::tables()).unwrap();
            Bench { connection, ids: Ids::new(ms(window), ms(remember), max), position: 0 }
        }

        fn seen(&self, number: u128, now: u64) -> Seen {
            let id = Uuid::from_u128(number << 96 | number);
            self.ids.seen(&self.connection, id, at(now), self.position).unwrap()
        }

        /// Takes a creation as the writer does.
        fn create(&mut self, number: u128, now: u64) -> Seen {
            let id = Uuid::from_u128(number << 96 | number);
            let seen = self.seen(number, now);
            let before = match seen {
                Seen::InsideWindow(_) => return seen,
                Seen::BeforeWindow(before) => Some(before),
                Seen::Never => None,
            };
            self.position += 1;
            self.ids.remember(&self.connection, id, self.position, at(now), before).unwrap();
            seen
        }

        fn reload(&mut self, now: u64) {
            let Ids { window, remember, max, .. } = self.ids;
            self.ids = Ids::new(window, remember, max);
            self.ids.load(&self.connection, at(now)).unwrap();
        }
    }

    #[test]
    fn the_window_ends_to_the_millisecond_in_both_directions() {
        let mut bench = Bench::new(600, 10_000, 10);
        assert_eq!(bench.create(1, 5000), Seen::Never);
        for (now, expected) in [
            (5599, Seen::InsideWindow(1)),
            (5600, Seen::BeforeWindow(1)),
            (4401, Seen::InsideWindow(1)),
            (4400, Seen::BeforeWindow(1)),
        ] {
            assert_eq!(bench.seen(1, now), expected, "{now}");
        }
    }

    #[test]
    fn a_creation_takes_the_place_of_the_one_before_also_after_a_start() {
        let mut bench = Bench::new(600, 10_000, 10);
        bench.create(1, 1000);
        assert_eq!(bench.create(1, 2000), Seen::BeforeWindow(1));
        assert_eq!(bench.create(1, 2100), Seen::InsideWindow(2));
        bench.reload(2100);
        assert_eq!(bench.create(1, 3000), Seen::BeforeWindow(2));
        assert_eq!(bench.ids.len(), 1);
    }

    #[test]
    fn what_was_not_committed_was_not_seen() {
        let mut bench = Bench::new(600, 10_000, 10);
        bench.create(1, 0);
        bench.ids.commit();
        bench.connection.execute_batch("BEGIN").unwrap();
        bench.create(1, 1000);
        bench.create(2, 1000);
        bench.connection.execute_batch("ROLLBACK").unwrap();
        bench.ids.roll_back();
        assert_eq!(bench.seen(2, 1000), Seen::Never);
        assert_eq!(bench.seen(1, 1000), Seen::BeforeWindow(1));
        assert_eq!(bench.ids.len(), 1);
    }

    #[test]
    fn two_ids_with_one_hash_are_told_apart() {
        let mut bench = Bench::new(600, 10_000, 10);
        bench.create(7, 0);
        let other = Uuid::from_u128(7 << 96 | 8);
        let seen = bench.ids.seen(&bench.connection, other, at(0), bench.position).unwrap();
        assert_eq!(seen, Seen::Never);
    }

    #[test]
    fn the_oldest_are_forgotten_when_their_time_is_over_or_they_are_too_many() {
        let mut bench = Bench::new(10, 1000, 3);
        for number in 1..=5 {
            bench.create(number, u64::try_from(number).unwrap() * 100);
        }
        assert!(bench.ids.has_surplus(&bench.connection, at(500)).unwrap());
        bench.ids.forget(&bench.connection, at(500)).unwrap();
        assert_eq!((bench.seen(2, 500), bench.seen(3, 500)), (Seen::Never, Seen::BeforeWindow(3)));
        assert!(!bench.ids.has_surplus(&bench.connection, at(1299)).unwrap());
        assert!(bench.ids.has_surplus(&bench.connection, at(1300)).unwrap());
        bench.ids.forget(&bench.connection, at(1400)).unwrap();
        assert_eq!((bench.seen(4, 1400), bench.ids.len()), (Seen::Never, 1));
    }

    #[test]
    fn a_clock_that_was_ahead_makes_no_duplicate_and_nothing_that_stays_for_ever() {
        let mut bench = Bench::new(10, 1000, 3);
        bench.create(1, 1_000_000);
        bench.create(2, 1_000_000);
        bench.reload(5000);
        assert_eq!(bench.create(1, 5000), Seen::BeforeWindow(1));
        assert_eq!(bench.create(1, 5001), Seen::InsideWindow(3));
        bench.ids.forget(&bench.connection, at(5000)).unwrap();
        assert_eq!(bench.ids.len(), 2);
        bench.ids.forget(&bench.connection, at(6001)).unwrap();
        assert_eq!(bench.ids.len(), 0);
    }

    #[test]
    fn an_id_costs_less_than_thirty_two_bytes_of_memory() {
        let mut table: HashTable<Entry> = HashTable::new();
        for number in 0..1_000_000_u32 {
            let hash = number.wrapping_mul(0x9e37_79b9);
            let entry = Entry { hash, position: number };
            table.insert_unique(spread(hash), entry, |entry| spread(entry.hash));
        }
        assert!(table.allocation_size() < 32 * table.len(), "{}", table.allocation_size());
    }
}
