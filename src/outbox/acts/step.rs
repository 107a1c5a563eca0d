//! The writer's part of an act: one step is one synced transaction over a few hundred rows.

use std::sync::atomic::Ordering::Relaxed;

use rusqlite::{OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::batch::Room;
use super::super::health::StorageError;
use super::super::ids::{Ids, Seen};
use super::super::row::{CALLBACK, COLUMNS, OVERHEAD, Values, inserting};
use super::super::writer::{Writer, add};
use super::super::{List, Quarantined, Record, Refusal};
use crate::event::recreated_id;
use crate::time::Timestamp;

/// When a retried or replayed event is due: at once, by any clock. All of them alike, so that they are handed over
/// by position.
const AT_ONCE: Timestamp = Timestamp::from_millis(0);

pub(in super::super) enum Step {
    /// Dead letters, by their positions.
    Retry(Vec<u64>),
    /// Dead letters or quarantined bodies.
    Drop(List, Vec<u64>),
    /// Delivered events, by their positions.
    Replay(Vec<u64>),
    Requeue(Vec<Requeued>),
    /// Events with ids of their own. A rehearsal changes nothing.
    Append {
        events: Vec<Imported>,
        is_rehearsal: bool,
    },
}

/// A quarantined body that was parsed again.
pub(in super::super) struct Requeued {
    pub(super) number: u64,
    /// The event, or why it stays in quarantine.
    pub(super) event: Result<Record, String>,
}

pub(in super::super) struct Imported {
    /// The id of its topic's first creation, as far as it can be told.
    pub(super) first_id: Uuid,
    pub(super) record: Record,
}

pub(in super::super) struct Asked {
    pub(super) step: Step,
    pub(super) answer: oneshot::Sender<Result<Taken, Refusal>>,
}

/// What a step did.
#[derive(Debug, Default)]
pub(in super::super) struct Taken {
    pub(super) done: u64,
    pub(super) duplicates: u64,
    pub(super) kept: u64,
    /// Why it did not do the rest.
    pub(super) refusal: Option<Refusal>,
    /// How the numbers of rows changed.
    accepted: u64,
    deferred: i64,
    dead_letters: i64,
    quarantined: i64,
    bytes: u64,
}

/// What a step works with inside of its transaction.
struct Work<'w> {
    transaction: Transaction<'w>,
    ids: &'w mut Ids,
    /// The last position given.
    position: u64,
    steady: Timestamp,
    wall: Timestamp,
    room: Room,
    taken: Taken,
}

impl Writer {
    /// Takes each step and answers it. An error is permanent.
    pub(in super::super) fn take_steps(&mut self, steps: Vec<Asked>) -> Result<(), String> {
        for Asked { step, answer } in steps {
            let taken = match self.condition.refusal() {
                Some(refusal @ (Refusal::DiskFull | Refusal::LogHeld)) => Err(refusal),
                _ => match self.timed(|writer| writer.take_step(&step)) {
                    Ok(taken) => Ok(self.apply_step(taken)),
                    Err(error) => match StorageError::of(&error, &self.reserve) {
                        StorageError::Refused(refusal) => {
                            self.roll_back(refusal);
                            Err(refusal)
                        }
                        StorageError::Broken(reason) => return Err(reason),
                    },
                },
            };
            let _ = answer.send(taken); // whoever asked may be gone
        }
        Ok(())
    }

    fn take_step(&mut self, step: &Step) -> rusqlite::Result<Taken> {
        self.set_sync(true)?;
        let room = self.room();
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut work = Work {
            transaction,
            ids: &mut self.ids,
            position: self.position,
            steady: self.clock.steady(),
            wall: self.clock.wall(),
            room,
            taken: Taken::default(),
        };
        match step {
            Step::Retry(positions) => positions.iter().try_for_each(|at| work.retry(*at))?,
            Step::Drop(List::Quarantined, numbers) => {
                numbers.iter().try_for_each(|number| work.release(*number, true))?;
            }
            Step::Drop(_, positions) => positions.iter().try_for_each(|at| work.bury(*at))?,
            Step::Replay(positions) => work.replay(positions)?,
            Step::Requeue(bodies) => work.requeue(bodies)?,
            Step::Append { events, is_rehearsal: true } => work.rehearse(events)?,
            Step::Append { events, .. } => work.append(events)?,
        }
        work.transaction.commit()?;
        Ok(work.taken)
    }

    /// Applies what was committed, and wakes the relay.
    fn apply_step(&mut self, taken: Taken) -> Taken {
        self.ids.commit();
        self.position += taken.accepted;
        let (newest, shared) = (self.position, &self.shared);
        shared.bytes.fetch_add(taken.bytes, Relaxed); // an estimate, until it is measured
        add(&shared.deferred, taken.deferred);
        add(&shared.dead_letters, taken.dead_letters);
        add(&shared.quarantined, taken.quarantined);
        self.forgets = self.ids.len() > self.config.remember_ids_max;
        self.unmeasured += taken.bytes;
        if taken.accepted > 0 || taken.deferred > 0 {
            self.last.send_modify(|last| *last = newest);
        }
        taken
    }
}

impl Work<'_> {
    /// Moves a dead letter to the deferred events.
    fn retry(&mut self, position: u64) -> rusqlite::Result<()> {
        let sql = format!(
            "INSERT OR IGNORE INTO deferred ({COLUMNS}, attempts, not_before, reason)
             SELECT {COLUMNS}, 0, ?2, reason FROM dead_letters WHERE position = ?1"
        );
        let row = params![position, AT_ONCE];
        let moved = self.transaction.prepare_cached(&sql)?.execute(row)?;
        self.taken.deferred += rows(moved);
        self.bury(position)
    }

    /// Deletes a dead letter.
    fn bury(&mut self, position: u64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM dead_letters WHERE position = ?1";
        let gone = self.transaction.prepare_cached(sql)?.execute([position])?;
        self.taken.done += gone as u64;
        self.taken.dead_letters -= rows(gone);
        Ok(())
    }

    /// Deletes a quarantined body.
    fn release(&mut self, number: u64, counts: bool) -> rusqlite::Result<()> {
        let sql = "DELETE FROM quarantine WHERE number = ?1";
        let gone = self.transaction.prepare_cached(sql)?.execute([number])?;
        self.taken.done += if counts { gone as u64 } else { 0 };
        self.taken.quarantined -= rows(gone);
        Ok(())
    }

    /// Copies delivered events to the deferred ones, where they do not wait already.
    fn replay(&mut self, positions: &[u64]) -> rusqlite::Result<()> {
        let length = "SELECT octet_length(data) FROM events WHERE position = ?1";
        let mut length = self.transaction.prepare_cached(length)?;
        let copy = format!(
            "INSERT OR IGNORE INTO deferred ({COLUMNS}, attempts, not_before, reason)
             SELECT {COLUMNS}, 0, ?2, 'delivered before, and replayed' FROM events
             WHERE position = ?1 AND position <= (SELECT settled_through FROM relay)
                 AND position NOT IN (SELECT position FROM dead_letters)"
        );
        let mut copy = self.transaction.prepare_cached(&copy)?;
        for position in positions {
            let Some(bytes) = length.query_row([position], |row| row.get(0)).optional()? else {
                continue; // trimmed meanwhile
            };
            let cost = OVERHEAD + Option::<u64>::unwrap_or_default(bytes);
            if let Err(refusal) = self.room.take(cost) {
                self.taken.refusal = Some(refusal);
                return Ok(());
            }
            let copied = copy.execute(params![position, AT_ONCE])?;
            self.taken.done += copied as u64;
            self.taken.deferred += rows(copied);
            self.taken.bytes += cost;
        }
        Ok(())
    }

    /// Writes another reason beside a quarantined callback, unless that is damaged: its checksum must not hide it.
    fn say_why(&self, number: u64, reason: &str) -> rusqlite::Result<()> {
        let sql = format!("SELECT {CALLBACK} FROM quarantine WHERE number = ?1");
        let mut found = self.transaction.prepare_cached(&sql)?;
        let Some(callback) = found.query_row([number], |row| Ok(Quarantined::read(row)))? else {
            return Ok(());
        };
        let sum = Quarantined { reason: reason.to_owned(), ..callback }.checksum();
        let sql = "UPDATE quarantine SET reason = ?2, checksum = ?3 WHERE number = ?1";
        self.transaction.prepare_cached(sql)?.execute(params![number, reason, sum]).map(drop)
    }

    fn requeue(&mut self, bodies: &[Requeued]) -> rusqlite::Result<()> {
        for Requeued { number, event } in bodies {
            let sql = "SELECT count(*) FROM quarantine WHERE number = ?1";
            let mut is_there = self.transaction.prepare_cached(sql)?;
            if is_there.query_row([number], |row| row.get::<_, u64>(0))? == 0 {
                continue; // dropped meanwhile
            }
            drop(is_there);
            match event {
                Err(reason) => {
                    self.say_why(*number, reason)?;
                    self.taken.kept += 1;
                }
                Ok(record) => {
                    let (first, then) = (record.event.id, self.steady_time_of(record.accepted_at));
                    match self.ids.seen(&self.transaction, first, then, self.position())? {
                        Seen::InsideWindow(_) => self.taken.duplicates += 1,
                        seen => {
                            let id = match seen {
                                Seen::Never => first,
                                _ => recreated_id(first, record.accepted_at),
                            };
                            if !self.insert(id, first, record, seen)? {
                                return Ok(());
                            }
                        }
                    }
                    self.release(*number, false)?;
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, events: &[Imported]) -> rusqlite::Result<()> {
        for Imported { first_id, record } in events {
            let then = self.steady_time_of(record.accepted_at);
            let seen = self.ids.seen(&self.transaction, *first_id, then, self.position())?;
            if is_known(record.event.id, *first_id, &seen) {
                self.taken.duplicates += 1;
            } else if !self.insert(record.event.id, *first_id, record, seen)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn rehearse(&mut self, events: &[Imported]) -> rusqlite::Result<()> {
        for Imported { first_id, record } in events {
            let seen = self.ids.seen(&self.transaction, *first_id, self.steady, self.position())?;
            let count = match is_known(record.event.id, *first_id, &seen) {
                true => &mut self.taken.duplicates,
                false => &mut self.taken.done,
            };
            *count += 1;
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position + self.taken.accepted
    }

    /// When that was by the steady clock, as far as the wall's can be trusted.
    fn steady_time_of(&self, moment: Timestamp) -> Timestamp {
        self.steady - self.wall.since(moment)
    }

    /// Appends an event to the queue, or returns false where there is no room. The history counts it from now on.
    fn insert(
        &mut self,
        id: Uuid,
        first_id: Uuid,
        record: &Record,
        seen: Seen,
    ) -> rusqlite::Result<bool> {
        let Record { accepted_at, event, traceparent, .. } = record;
        let (position, accepted_at) = (self.position() + 1, *accepted_at);
        let (steady_at, traceparent) = (self.steady, traceparent.as_deref());
        let values = Values { position, steady_at, accepted_at, id, event, traceparent };
        let cost = values.cost();
        if let Err(refusal) = self.room.take(cost) {
            self.taken.refusal = Some(refusal);
            return Ok(false);
        }
        values.insert(&mut inserting(&self.transaction, "events")?)?;
        let (before, at) = match seen {
            Seen::Never => (None, self.steady_time_of(accepted_at)),
            Seen::InsideWindow(before) | Seen::BeforeWindow(before) => {
                // The topic's latest creation counts, which may be the one that is known.
                let sql = "SELECT steady_at FROM ids WHERE position = ?1";
                let mut known = self.transaction.prepare_cached(sql)?;
                let known = known.query_row([before], |row| row.get(0))?;
                (Some(before), self.steady_time_of(accepted_at).max(known))
            }
        };
        self.ids.remember(&self.transaction, first_id, position, at, before)?;
        self.taken.accepted += 1;
        self.taken.done += 1;
        self.taken.bytes += cost;
        Ok(true)
    }
}

/// Whether an imported event was here before: its topic is remembered. Of a topic that was created anew, the events
/// in the file are known by their own ids.
fn is_known(id: Uuid, first_id: Uuid, seen: &Seen) -> bool {
    id == first_id && *seen != Seen::Never
}

fn rows(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
