//! The outbox and its relay as they are, and what the model knows of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::*;
use super::{Op, WINDOW};
use crate::event::recreated_id;
use crate::outbox::fixtures::{self, START, close, record};
use crate::outbox::{List, Outcome, Quarantined, Receipt, Refusal, Workers};
use crate::sink::scripted::{Journal, Scripted};
use crate::time::Clock;

const HISTORY: u64 = 8;

/// An accepted event, as the model knows it.
struct Event {
    id: Uuid,
    topic: u8,
    deliveries: u32,
    /// Delivered in this run: not again before a kill.
    is_done: bool,
    was_refused: bool,
    was_deferred: bool,
}

/// The real thing, and beside it the model.
pub(super) struct World {
    folder: TempDir,
    clock: Clock,
    outbox: Outbox,
    workers: Workers,
    relay: Relay,
    journal: Journal,
    script: Arc<Mutex<Vec<u8>>>,
    is_full: bool,
    events: BTreeMap<u64, Event>,
    /// By topic, when it was created last.
    created: BTreeMap<u8, u64>,
    quarantined: u64,
}

fn verdict(script: &[u8], call: usize) -> Verdict {
    let reason = |kind| Reason::new(kind, "scripted");
    match script[call % script.len()] {
        0 => Verdict::Later(reason(Kind::Unroutable)),
        1 => Verdict::Later(reason(Kind::Other)),
        2 => Verdict::Refused(reason(Kind::Invalid)),
        3 => Verdict::Away(reason(Kind::Unreachable)),
        _ => Verdict::Delivered,
    }
}

fn first_id(topic: u8) -> Uuid {
    record(&format!("t{topic}"), 0).event.id
}

impl World {
    pub(super) fn new() -> Self {
        let folder = TempDir::new_in(shared_memory()).unwrap();
        let clock = Clock::scripted(START);
        let script = Arc::new(Mutex::new(vec![9]));
        let (outbox, workers, relay, journal) = open(&folder, &clock, &script);
        World {
            folder,
            clock,
            outbox,
            workers,
            relay,
            journal,
            script,
            is_full: false,
            events: BTreeMap::new(),
            created: BTreeMap::new(),
            quarantined: 0,
        }
    }

    pub(super) async fn step(mut self, op: &Op) -> Self {
        match op {
            Op::Append(topics) => self.append(topics).await,
            Op::AppendUnderLock(topic) => {
                let lock = self.lock();
                self.append_to(&[*topic], &[Refusal::Locked]).await;
                drop(lock);
                self.outbox.tick().await; // finds out that it is gone
            }
            Op::Quarantine => self.quarantine().await,
            Op::Round(script) => self.round(script, 0, None).await,
            Op::ShortRound => self.round(&[9], 1, None).await,
            Op::RoundUnderLock(script) => {
                let lock = self.lock();
                self.round(script, 0, Some(lock)).await;
                self.outbox.tick().await;
            }
            Op::FullDisk(is_full) => {
                self.is_full = *is_full;
                self.outbox.limit_pages(is_full.then_some(0)).await;
            }
            Op::Tick => self.outbox.tick().await,
            Op::Flush => self.flush().await,
            Op::Pass(time) => {
                self.clock.set(self.clock.wall() + time, self.clock.steady() + time);
            }
            Op::SetWall(shift) => {
                self.clock
                    .set(self.clock.wall().saturating_add_signed(*shift), self.clock.steady());
            }
            Op::Kill(shift) => return self.restart(*shift, true).await,
            Op::Restart(shift) => return self.restart(*shift, false).await,
        }
        self
    }

    fn lock(&self) -> Connection {
        let other = Connection::open(self.folder.path().join("outbox.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }

    async fn append(&mut self, topics: &[u8]) {
        let may_refuse: &[Refusal] = if self.is_full { &[Refusal::DiskFull] } else { &[] };
        self.append_to(topics, may_refuse).await;
    }

    async fn append_to(&mut self, topics: &[u8], may_refuse: &[Refusal]) {
        let (wall, steady) = (self.clock.wall(), self.clock.steady());
        let waiting: Vec<oneshot::Receiver<Outcome>> = topics
            .iter()
            .map(|topic| self.outbox.append(record(&format!("t{topic}"), wall)).unwrap())
            .collect();
        for (topic, answer) in topics.iter().zip(waiting) {
            let before = self.created.get(topic).copied();
            let is_repeat = before.is_some_and(|at| steady.abs_diff(at) < WINDOW);
            match answer.await.unwrap() {
                Ok(Receipt::Accepted) => {
                    assert!(!is_repeat, "a repeat of topic {topic} was accepted");
                    let id = match before {
                        Some(_) => recreated_id(first_id(*topic), wall),
                        None => first_id(*topic),
                    };
                    let position = self.events.len() as u64 + 1;
                    let event = Event {
                        id,
                        topic: *topic,
                        deliveries: 0,
                        is_done: false,
                        was_refused: false,
                        was_deferred: false,
                    };
                    self.events.insert(position, event);
                    self.created.insert(*topic, steady);
                }
                Ok(Receipt::Duplicate) => assert!(is_repeat, "topic {topic} was swallowed"),
                Ok(Receipt::Quarantined) => panic!("an event was quarantined"),
                Err(refusal) => assert!(may_refuse.contains(&refusal), "{refusal}"),
            }
        }
        assert_eq!(*self.outbox.last().borrow(), self.events.len() as u64);
    }

    async fn quarantine(&mut self) {
        let callback = Quarantined {
            sdk_app_id: 1,
            client_ip: None,
            client_platform: None,
            received_at: self.clock.wall(),
            reason: "scripted".into(),
            body: vec![b'x'; 100],
        };
        match self.outbox.quarantine(callback).unwrap().await.unwrap() {
            Ok(_) => self.quarantined += 1,
            Err(Refusal::QuarantineFull) => assert_eq!(self.quarantined, 3),
            Err(refusal) => assert!(self.is_full && refusal == Refusal::DiskFull, "{refusal}"),
        }
    }

    async fn round(&mut self, script: &[u8], forgets: u32, lock: Option<Connection>) {
        *self.script.lock().unwrap() = script.to_vec();
        if let Sink::Scripted(sink) = &mut self.relay.sink {
            sink.forgets = forgets;
        }
        let unlock = async {
            if let Some(lock) = lock {
                sleep(Duration::from_millis(15)).await;
                drop(lock);
            }
        };
        // What it has to write it waits for: a full disk is tried again by the clock.
        let ticking = async {
            loop {
                sleep(Duration::from_millis(2)).await;
                self.outbox.limit_pages(None).await;
                self.outbox.tick().await;
            }
        };
        tokio::select! {
            (result, ()) = async { tokio::join!(self.relay.round(), unlock) } => drop(result.unwrap()),
            () = ticking => {}
        }
        if self.is_full {
            self.outbox.limit_pages(Some(0)).await;
        }
        let calls = std::mem::take(&mut *self.journal.lock().unwrap());
        for (position, verdict) in calls.into_iter().flatten() {
            let event =
                self.events.get_mut(&position).expect("only what was accepted is delivered");
            match verdict {
                // A batch that was not judged whole counts as not delivered.
                Verdict::Delivered if forgets > 0 => event.deliveries += 1,
                Verdict::Delivered => {
                    assert!(!event.is_done, "position {position} was delivered twice");
                    event.is_done = true;
                    event.deliveries += 1;
                }
                Verdict::Refused(_) => event.was_refused = true,
                Verdict::Later(_) => event.was_deferred = true,
                Verdict::Away(_) => {}
            }
        }
        self.check();
    }

    async fn flush(&mut self) {
        if !self.is_full {
            self.relay.flush().await.unwrap();
            self.check();
        }
    }

    /// What holds at any time: each event is somewhere, and where it belongs.
    fn check(&self) {
        let reader = self.outbox.reader().unwrap();
        let deferred = reader.run_here(|reading| reading.deferred_after(0, 10_000)).unwrap();
        let deferred: BTreeSet<_> =
            deferred.into_iter().map(|deferred| deferred.slot.unwrap().position).collect();
        let dead = reader.run_here(|reading| reading.list(List::DeadLetters, 0, 10_000)).unwrap();
        let dead: BTreeSet<_> = dead.into_iter().map(|dead| dead.position).collect();
        let kept = fixtures::kept(&self.outbox);
        let kept: BTreeMap<_, _> =
            kept.into_iter().map(|(at, id, topic)| (at, (id, topic))).collect();
        let newest = self.events.len() as u64;
        for (position, event) in &self.events {
            let is_in_line = *position > self.relay.cursor;
            let is_somewhere = event.deliveries > 0
                || is_in_line
                || deferred.contains(position)
                || dead.contains(position);
            assert!(is_somewhere, "position {position} is lost");
            assert!(!deferred.contains(position) || event.was_deferred && !event.is_done);
            assert!(!dead.contains(position) || event.was_refused && !event.is_done);
            match kept.get(position) {
                Some(found) => assert_eq!(*found, (event.id, format!("t{}", event.topic))),
                None => {
                    assert!(!is_in_line && newest - position >= HISTORY, "{position} is trimmed")
                }
            }
        }
        assert_eq!(self.outbox.deferred(), deferred.len() as u64);
        assert_eq!(self.outbox.dead_letters(), dead.len() as u64);
        assert_eq!(self.outbox.quarantined(), self.quarantined);
        let written = self.outbox.settled_through();
        assert!(written <= self.relay.cursor, "more is settled than was");
        assert_eq!(self.outbox.pending(), newest - written + deferred.len() as u64);
    }

    /// Ends in order, or as `kill -9` ends it: what was written is all there, and nothing is closed.
    async fn restart(self, shift: i64, is_kill: bool) -> Self {
        let World { folder, clock, outbox, workers, relay, script, .. } = self;
        let copied = is_kill.then(|| copy(&folder));
        if !is_kill {
            outbox.limit_pages(None).await;
            outbox.tick().await;
            relay.flush().await.unwrap();
        }
        drop((relay, outbox));
        close(workers).await;
        let folder = copied.unwrap_or(folder);
        let now = clock.steady().saturating_add_signed(shift);
        clock.set(now, now);
        let (outbox, workers, relay, journal) = open(&folder, &clock, &script);
        let settled = outbox.settled_through();
        let deferred = relay.reader.run_here(|reading| reading.deferred_after(0, 10_000)).unwrap();
        let deferred: BTreeSet<_> =
            deferred.iter().map(|deferred| position(&deferred.slot)).collect();
        let mut events = self.events;
        for (position, event) in &mut events {
            let again = *position > settled || deferred.contains(position);
            assert!(is_kill || !again || !event.is_done || *position > relay.cursor);
            event.is_done &= !again;
        }
        // A clock that was ahead, by more than the window, makes no duplicates.
        let mut created = self.created;
        for at in created.values_mut().filter(|at| **at > now + WINDOW) {
            *at = now - WINDOW;
        }
        let quarantined = self.quarantined;
        let is_full = false;
        World {
            folder,
            clock,
            outbox,
            workers,
            relay,
            journal,
            script,
            is_full,
            events,
            created,
            quarantined,
        }
    }

    /// Everything is well again: whatever was accepted is delivered, or kept as a dead letter.
    pub(super) async fn heal(mut self) {
        self.is_full = false;
        self.outbox.limit_pages(None).await;
        self.outbox.tick().await;
        for _ in 0..1000 {
            if *self.outbox.last().borrow() <= self.relay.cursor && self.outbox.deferred() == 0 {
                break;
            }
            self.clock.set(self.clock.wall() + 60_000, self.clock.steady() + 60_000);
            self.round(&[9], 0, None).await;
        }
        self.flush().await;
        assert_eq!(self.outbox.pending(), 0, "all is delivered");
        for (position, event) in &self.events {
            assert!(event.deliveries > 0 || event.was_refused, "position {position} is lost");
        }
        drop((self.relay, self.outbox));
        close(self.workers).await;
    }
}

fn open(
    folder: &TempDir,
    clock: &Clock,
    script: &Arc<Mutex<Vec<u8>>>,
) -> (Outbox, Workers, Relay, Journal) {
    let config = config::Outbox {
        history_events: HISTORY,
        remember_ids: Duration::from_secs(u64::from(u32::MAX)), // for good
        ..fixtures::settings(folder.path())
    };
    let (outbox, workers) = fixtures::open(&config, clock);
    let (script, mut call) = (script.clone(), 0);
    let (sink, journal) = Scripted::new(move |_| {
        call += 1;
        verdict(&script.lock().unwrap(), call)
    });
    let config = config::Relay {
        batch: 4,
        retry_min: Duration::from_millis(100),
        retry_max: Duration::from_secs(30),
        confirm_timeout: Duration::from_secs(1),
        drain_timeout: Duration::ZERO,
    };
    let reader = outbox.reader().unwrap();
    let metrics = Arc::new(Metrics::new("embedded"));
    let relay = Relay::new(config, outbox.clone(), reader, Sink::Scripted(sink), metrics);
    (outbox, workers, relay, journal)
}

/// The files as they are: nothing is written meanwhile.
fn copy(folder: &TempDir) -> TempDir {
    let other = Connection::open(folder.path().join("outbox.db")).unwrap();
    other.busy_timeout(Duration::from_secs(5)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let copy = TempDir::new_in(shared_memory()).unwrap();
    for name in ["outbox.db", "outbox.db-wal"] {
        std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

/// Where files cost no disk, if there is such a place.
fn shared_memory() -> PathBuf {
    let place = PathBuf::from("/dev/shm");
    if place.is_dir() { place } else { std::env::temp_dir() }
}
