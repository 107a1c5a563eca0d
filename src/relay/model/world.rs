//! The outbox and its relay as they are, driven step by step beside the oracle.

mod acts;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::super::Relay;
use super::checks::{Call, Turn};
use super::oracle::{Check, Event, Moment, Oracle, Seen, State};
use super::stage::{RETRY_MAX, RETRY_MIN, Stage, all_delivered, event, folder, malformed, open};
use super::{Callback, Op, Script, Settings};
use crate::outbox::fixtures::START;
use crate::outbox::probe::{Probe, Rest, Submission};
use crate::outbox::{Health, List, Outbox, Reader, Refusal, Workers, position};
use crate::time::{Clock, Timestamp, milliseconds};

/// The space that is kept for the day when the disk is full.
const RESERVE: u64 = 512 * 1024;

/// The real thing, and beside it the model.
pub(super) struct World {
    folder: TempDir,
    settings: Settings,
    clock: Clock,
    outbox: Outbox,
    reader: Reader,
    workers: Workers,
    turn: Doing,
    stage: Arc<Mutex<Stage>>,
    lock: Option<Connection>,
    reading: Option<Connection>,
    is_disk_full: bool,
    log_bytes: u64,
    oracle: Oracle,
    trace: Vec<String>,
}

/// A clock that somebody has set by so many milliseconds.
fn shifted(time: Timestamp, shift: i64) -> Timestamp {
    Timestamp::from_millis(time.as_millis().saturating_add_signed(shift))
}

type Work = Pin<Box<dyn Future<Output = (Box<Relay>, anyhow::Result<()>)>>>;

/// What the relay is doing.
enum Doing {
    Nothing(Box<Relay>),
    /// A round, or a flush, that waits for the outbox.
    Work(Work),
    Ended,
}

impl World {
    pub(super) async fn new(settings: Settings) -> Check<Self> {
        fastrand::seed(7); // the jitter of the waits
        let folder = folder();
        let stage = Stage { script: all_delivered(), said: 0, calls: Vec::new() };
        let stage = Arc::new(Mutex::new(stage));
        let clock = Clock::scripted(START);
        let (outbox, workers, relay) = open(&folder, &settings, &clock, &stage);
        let mut world = World {
            folder,
            oracle: Oracle::new(settings.clone()),
            settings,
            clock,
            reader: outbox.reader().unwrap(),
            outbox,
            workers,
            turn: Doing::Nothing(relay),
            stage,
            lock: None,
            reading: None,
            is_disk_full: false,
            log_bytes: 0,
            trace: Vec::new(),
        };
        world.begin().await?;
        Ok(world)
    }

    /// After a start.
    async fn begin(&mut self) -> Check {
        let (settled_through, now) = (self.outbox.settled_through(), self.clock.steady());
        self.oracle.restart(settled_through, now, RETRY_MAX)?;
        self.outbox.probe(Probe::StepByStep).await;
        self.come_to_rest().await?;
        self.check_content()
    }

    pub(super) async fn step(mut self, op: &Op) -> Check<Self> {
        self.trace.push(format!("{op:?}"));
        match op {
            Op::Submit(callbacks) => self.submit(callbacks).await?,
            Op::Round(script) => self.round(script),
            Op::Flush => self.flush(),
            Op::Tick => self.tick().await?,
            Op::Lock if self.lock.is_none() => self.lock = Some(self.other("BEGIN IMMEDIATE")),
            Op::Unlock => self.lock = None,
            Op::Read if self.reading.is_none() => {
                self.reading = Some(self.other("BEGIN; SELECT count(*) FROM events"));
            }
            Op::Lock | Op::Read => {}
            Op::EndReading => self.reading = None,
            Op::FillDisk(more) => {
                self.is_disk_full = true;
                self.outbox.probe(Probe::FillDisk(*more)).await;
            }
            Op::EmptyDisk => self.empty_disk().await,
            Op::Act(act) => self.act(*act).await?,
            Op::Damage(which) => self.damage(*which),
            Op::Pass(time) => self.set_clock(*time, 0),
            Op::SetWall(shift) => self.set_clock(0, *shift),
            Op::Kill(shift) => return self.restart(*shift, true).await,
            Op::Stop(shift) => return self.restart(*shift, false).await,
        }
        self.come_to_rest().await?;
        Ok(self)
    }

    fn other(&self, sql: &str) -> Connection {
        let other = Connection::open(self.folder.path().join("outbox.db")).unwrap();
        other.execute_batch(sql).unwrap();
        other
    }

    async fn empty_disk(&mut self) {
        self.is_disk_full = false;
        self.outbox.probe(Probe::EmptyDisk).await;
    }

    fn damage(&mut self, which: usize) {
        let is_busy = self.lock.is_some() || matches!(self.turn, Doing::Work(_));
        let is_open = |event: &&mut Event| match event.state {
            State::Waiting => !event.is_done && !event.is_damaged,
            State::Deferred => !event.is_damaged,
            _ => false,
        };
        let mut open: Vec<_> = self.oracle.events.iter_mut().filter(is_open).collect();
        if is_busy || open.is_empty() {
            return;
        }
        let which = which % open.len();
        open[which].is_damaged = true;
        let (position, state) = (open[which].stored.position, open[which].state);
        let table = if state == State::Deferred { "deferred" } else { "events" };
        self.other(&format!("UPDATE {table} SET data = data || ' ' WHERE position = {position}"));
    }

    /// Takes note of the damaged ones that are dead letters by now.
    fn find_damaged(&mut self) {
        for position in self.oracle.damaged() {
            let kept = self.reader.run_here(|reading| reading.at(position)).unwrap();
            if kept.is_some_and(|kept| kept.state == "dead") {
                self.oracle.event(position).unwrap().state = State::Dead;
            }
        }
    }

    fn set_clock(&mut self, passed: u64, shift: i64) {
        let passed = Duration::from_millis(passed);
        let wall = shifted(self.clock.wall() + passed, shift);
        self.clock.set(wall, self.clock.steady() + passed);
    }

    async fn submit(&mut self, callbacks: &[Callback]) -> Check {
        let wall = self.clock.wall();
        let callbacks: Vec<_> = callbacks
            .iter()
            .map(|callback| match callback.topic {
                Some(topic) => Ok(event(topic, callback.size, wall)),
                None => Err(callback.size),
            })
            .collect();
        let moment = Moment {
            steady: self.clock.steady(),
            bytes: self.outbox.bytes(),
            log_bytes: self.log_bytes,
            is_locked: self.lock.is_some(),
            is_disk_full: self.is_disk_full,
        };
        let submissions = callbacks.iter().map(|callback| match callback {
            Ok(record) => Submission::Event(record.again()),
            Err(size) => Submission::Malformed(malformed(*size, wall)),
        });
        let answers = self.outbox.submit_together(submissions.collect());
        let mut answered = Vec::new();
        for (callback, answer) in callbacks.into_iter().zip(answers) {
            let outcome = answer.await.map_err(|_| TestCaseError::fail("no answer"))?;
            answered.push((callback.map_err(|size| size as u64), outcome));
        }
        let outcomes: Vec<_> = answered.iter().map(|(_, outcome)| outcome).collect();
        self.trace.push(format!("answered {outcomes:?}"));
        prop_assert_eq!(self.outbox.queued(), 0, "who is answered does not wait");
        self.oracle.submit(&answered, moment)
    }

    fn round(&mut self, script: &Script) {
        self.begin_work(Some(script.clone()));
    }

    fn flush(&mut self) {
        self.begin_work(None);
    }

    /// A relay that still waits for the outbox goes on with that.
    fn begin_work(&mut self, script: Option<Script>) {
        self.turn = match std::mem::replace(&mut self.turn, Doing::Ended) {
            Doing::Nothing(mut relay) => {
                let is_round = script.is_some();
                if let Some(script) = script {
                    let mut stage = self.stage.lock().unwrap();
                    (stage.script, stage.said) = (script, 0);
                }
                Doing::Work(Box::pin(async move {
                    let result =
                        if is_round { relay.round().await.map(drop) } else { relay.flush().await };
                    (relay, result)
                }))
            }
            busy => busy,
        };
    }

    async fn tick(&mut self) -> Check {
        self.outbox.tick().await;
        self.oracle.tick(self.clock.steady());
        let mut rest = self.writer_at_rest().await?;
        let mut before = self.outbox.bytes();
        if matches!(self.oracle.health, Some(Refusal::Full | Refusal::LogHeld)) {
            // Room that was made by the first one is found out by the next.
            self.outbox.tick().await;
            before = before.max(self.outbox.bytes());
            rest = self.writer_at_rest().await?;
        }
        let after = self.outbox.bytes();
        let seen = self.see(rest);
        self.oracle.health_after_tick(&seen, [before, after])?;
        let has_reserve = std::fs::metadata(self.folder.path().join("outbox.db-reserve"))
            .is_ok_and(|found| found.len() == RESERVE);
        prop_assert!(
            has_reserve || self.is_disk_full || seen.health.is_some(),
            "there is no reserve for the next time the disk is full"
        );
        Ok(())
    }

    async fn look(&self) -> Check<Rest> {
        let rest = self.outbox.probe(Probe::Look).await;
        rest.ok_or_else(|| TestCaseError::fail(format!("{:?}", *self.outbox.health().borrow())))
    }

    /// Waits until writer and relay do nothing more by themselves.
    async fn come_to_rest(&mut self) -> Check {
        let mut rest = self.writer_at_rest().await?;
        for _ in 0..100 {
            let Doing::Work(work) = &mut self.turn else { break };
            let polled = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
            let calls = std::mem::take(&mut self.stage.lock().unwrap().calls);
            let is_stalled = match &polled {
                Poll::Ready((relay, _)) => relay.stalled_at.is_some(),
                Poll::Pending => false, // then it would not write
            };
            self.judge(&calls, is_stalled)?;
            if let Poll::Ready((relay, result)) = polled {
                result.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
                self.find_damaged();
                self.oracle.written(relay.cursor)?;
                self.turn = Doing::Nothing(relay);
            }
            rest = self.writer_at_rest().await?;
            if rest.settlements > 0 {
                break;
            }
        }
        if rest.settlements > 0 {
            let waits = matches!(self.turn, Doing::Work(_));
            prop_assert!(waits, "the relay goes on before its settlement is written");
        } else {
            prop_assert!(matches!(self.turn, Doing::Nothing(_)), "the relay waits for nothing");
        }
        self.log_bytes = rest.log_bytes;
        let seen = self.see(rest);
        self.trace.push(format!("{seen:?}"));
        self.oracle.rest(&seen, self.clock.steady())
    }

    fn judge(&mut self, calls: &[Call], is_stalled: bool) -> Check {
        for call in calls {
            let positions: Vec<_> = call.events.iter().map(|event| event.position).collect();
            self.trace.push(format!("handed over {positions:?}: {:?}", call.verdicts));
        }
        let now = self.clock.steady();
        let turn = Turn { now, is_stalled, retry_min: RETRY_MIN, retry_max: RETRY_MAX };
        self.oracle.round(calls, turn)
    }

    async fn writer_at_rest(&self) -> Check<Rest> {
        let mut looks = 0;
        while looks < 2000 {
            let rest = self.look().await?;
            if rest.is_checkpointing {
                continue; // as long as that thread takes
            }
            let cannot_write = self.lock.is_some()
                || *self.outbox.health().borrow() == Health::Refusing(Refusal::DiskFull);
            if cannot_write || !rest.has_work() {
                return Ok(rest);
            }
            looks += 1;
        }
        Err(TestCaseError::fail("the writer never comes to rest"))
    }

    fn see(&self, rest: Rest) -> Seen {
        let health = match &*self.outbox.health().borrow() {
            Health::Taking => None,
            Health::Refusing(refusal) => Some(*refusal),
            Health::Poisoned(_) => Some(Refusal::Poisoned),
        };
        Seen {
            last: *self.outbox.last().borrow(),
            newest: self.reader.run_here(|reading| reading.newest()).unwrap(),
            settled_through: self.outbox.settled_through(),
            pending: self.outbox.pending(),
            deferred: self.outbox.deferred(),
            dead_letters: self.outbox.dead_letters(),
            quarantined: self.outbox.quarantined(),
            oldest: self.reader.run_here(|reading| reading.before_oldest()).unwrap() + 1,
            health,
            rest,
            is_locked: self.lock.is_some(),
            is_disk_full: self.is_disk_full,
        }
    }

    /// What is in the file is what the model knows, row by row.
    fn check_content(&mut self) -> Check {
        let reader = self.reader.clone();
        let kept = reader.run_here(|reading| reading.after(0, 10_000)).unwrap();
        let positions: Vec<_> = kept.iter().map(position).collect();
        let oldest = self.oracle.last() + 1 - positions.len() as u64;
        prop_assert_eq!(&positions, &(oldest..=self.oracle.last()).collect::<Vec<_>>(), "a hole");
        for slot in kept {
            let event = self.oracle.event(position(&slot)).unwrap();
            match slot {
                Ok(stored) => prop_assert_eq!(&stored, &event.stored),
                Err(_) => prop_assert!(event.is_damaged, "{} is damaged", event.stored.position),
            }
        }
        let deferred = reader.run_here(|reading| reading.deferred_after(0, 10_000)).unwrap();
        for slot in deferred.into_iter().map(|deferred| deferred.slot) {
            let event = self.oracle.event(position(&slot)).unwrap();
            prop_assert_eq!(event.state, State::Deferred);
            match slot {
                Ok(stored) => prop_assert_eq!(&stored, &event.stored),
                Err(_) => prop_assert!(event.is_damaged, "{} is damaged", event.stored.position),
            }
        }
        let dead = reader.run_here(|reading| reading.list(List::DeadLetters, 0, 10_000)).unwrap();
        for dead in dead {
            let event = self.oracle.event(dead.position).unwrap();
            if event.is_damaged {
                prop_assert_eq!(event.state, State::Dead);
                continue; // what is left of it cannot be compared
            }
            let content = event.stored.event.structured().into_bytes();
            prop_assert_eq!((dead.content, State::Dead), (content, event.state));
            prop_assert_eq!(dead.reason.as_deref(), Some("scripted"));
        }
        Ok(())
    }

    /// Ends in order, or as `kill -9` ends it: what was written is all there, and nothing is closed.
    async fn restart(mut self, shift: i64, is_kill: bool) -> Check<Self> {
        let written = self.outbox.settled_through();
        let can_write = self.lock.is_none()
            && !self.is_disk_full
            && self.oracle.health != Some(Refusal::DiskFull);
        let cursor = match &self.turn {
            Doing::Nothing(relay) => relay.cursor,
            _ => self.oracle.closure(),
        };
        if is_kill {
            let copy = folder();
            for name in ["outbox.db", "outbox.db-wal", "outbox.db-reserve"] {
                let _ = std::fs::copy(self.folder.path().join(name), copy.path().join(name));
            }
            self.folder = copy; // the old one goes on as long as it is closed below
        }
        let World { outbox, reader, workers, turn, lock, reading, .. } = self;
        drop((turn, outbox, reader));
        workers.close();
        drop((lock, reading));
        let (wall, steady) = (self.clock.wall(), self.clock.steady());
        self.clock.set(shifted(wall, shift), shifted(steady, shift));
        let (outbox, workers, relay) = open(&self.folder, &self.settings, &self.clock, &self.stage);
        let settled_through = outbox.settled_through();
        if is_kill {
            prop_assert_eq!(settled_through, written, "what a kill leaves");
        } else if can_write {
            prop_assert_eq!(settled_through, cursor, "a stop writes what is settled");
        }
        let (turn, lock, reading) = (Doing::Nothing(relay), None, None);
        let reader = outbox.reader().unwrap();
        let mut world =
            World { outbox, reader, workers, turn, lock, reading, is_disk_full: false, ..self };
        world.begin().await?;
        Ok(world)
    }

    /// Everything is well again: whatever was accepted is delivered, or kept as a dead letter.
    pub(super) async fn heal(mut self) -> Check<Vec<String>> {
        for op in [Op::Unlock, Op::EndReading, Op::EmptyDisk, Op::Tick, Op::Tick] {
            self = self.step(&op).await?;
        }
        let refuses = !matches!(self.oracle.health, None | Some(Refusal::Full));
        prop_assert!(!refuses, "it still refuses: {:?}", self.oracle.health);
        let round = Op::Round(all_delivered());
        let enough = 3 * self.oracle.last() + 20;
        for _ in 0..enough {
            // What was delivered ahead of others may still have to be passed by.
            let is_through =
                matches!(&self.turn, Doing::Nothing(relay) if relay.cursor == self.oracle.last());
            if self.oracle.undelivered() == 0 && is_through {
                break;
            }
            self = self.step(&Op::Pass(milliseconds(RETRY_MAX))).await?;
            self = self.step(&round).await?;
        }
        prop_assert_eq!(self.oracle.undelivered(), 0, "not all is delivered");
        self = self.step(&Op::Flush).await?;
        prop_assert_eq!(self.outbox.pending(), 0, "the gauge says that something waits");
        self = self.step(&Op::Stop(0)).await?;
        prop_assert_eq!(self.outbox.settled_through(), self.oracle.last());
        let World { outbox, reader, workers, turn, trace, .. } = self;
        drop((turn, outbox, reader));
        workers.close();
        Ok(trace)
    }
}
