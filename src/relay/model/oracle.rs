//! What the model knows: every event that was ever accepted, the ids that are remembered, and what the
//! outbox must say of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::Settings;
use crate::event::recreated_id;
use crate::outbox::probe::Rest;
use crate::outbox::{Outcome, Receipt, Record, Refusal, Stored};
use crate::time::Timestamp;

/// Within this a callback about the same topic is the platform's retry.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// What a row costs beside its texts.
const OVERHEAD: u64 = 80;

pub(super) type Check<T = ()> = Result<T, TestCaseError>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum State {
    Waiting,
    Deferred,
    Delivered,
    Dead,
}

pub(super) struct Event {
    pub(super) stored: Stored,
    pub(super) state: State,
    /// The sink has confirmed it in this run: it must not see it again before the next.
    pub(super) is_done: bool,
    /// …while one before it still waited.
    pub(super) is_ahead: bool,
    /// The disk has altered it: it becomes a dead letter.
    pub(super) is_damaged: bool,
    /// Not to be tried before this, if nothing happens in between.
    pub(super) not_before: Timestamp,
    pub(super) attempts: u32,
    /// The number of the call in which it was tried last.
    pub(super) tried_in: u64,
}

/// What becomes of an event by what is written.
pub(super) struct Effect {
    pub(super) position: u64,
    pub(super) state: State,
    pub(super) attempts: u32,
    pub(super) not_before: Timestamp,
}

/// What can be seen of the outbox from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) last: u64,
    pub(super) newest: u64,
    pub(super) settled_through: u64,
    pub(super) pending: u64,
    pub(super) deferred: u64,
    pub(super) dead_letters: u64,
    pub(super) quarantined: u64,
    pub(super) oldest: u64,
    pub(super) health: Option<Refusal>,
    pub(super) rest: Rest,
    pub(super) is_locked: bool,
    pub(super) is_disk_full: bool,
}

pub(super) struct Oracle {
    pub(super) settings: Settings,
    pub(super) events: Vec<Event>,
    /// By position: the first id, and when it was created.
    ids: BTreeMap<u64, (Uuid, Timestamp)>,
    forgets: bool,
    quarantined: u64,
    /// The history has served its time up to here, and begins there.
    expired: u64,
    oldest: u64,
    pub(super) health: Option<Refusal>,
    settled_through: u64,
    /// What the relay waits for to be written.
    pub(super) outstanding: Vec<Effect>,
    pub(super) calls: u64,
    /// The last call that was more than a vain retry.
    pub(super) moved_in: u64,
    pub(super) has_delivered: bool,
    pub(super) retried_at: Timestamp,
}

/// What an append depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) steady: Timestamp,
    pub(super) bytes: u64,
    pub(super) log_bytes: u64,
    pub(super) is_locked: bool,
    pub(super) is_disk_full: bool,
}

/// A callback and how it was answered. No record: it was malformed, of so many bytes.
pub(super) type Answered = (Result<Record, u64>, Outcome);

impl Oracle {
    pub(super) fn new(settings: Settings) -> Self {
        Oracle {
            settings,
            events: Vec::new(),
            ids: BTreeMap::new(),
            forgets: false,
            quarantined: 0,
            expired: 0,
            oldest: 1,
            health: None,
            settled_through: 0,
            outstanding: Vec::new(),
            calls: 0,
            moved_in: 0,
            has_delivered: false,
            retried_at: Timestamp::default(),
        }
    }

    pub(super) fn event(&mut self, position: u64) -> Option<&mut Event> {
        self.events.get_mut(usize::try_from(position).ok()?.checked_sub(1)?)
    }

    pub(super) fn last(&self) -> u64 {
        self.events.len() as u64
    }

    pub(super) fn count(&self, state: State) -> u64 {
        self.events.iter().filter(|event| event.state == state).count() as u64
    }

    /// Events that nobody has confirmed or refused for good.
    pub(super) fn undelivered(&self) -> u64 {
        let waits = |event: &&Event| event.state == State::Waiting && !event.is_done;
        self.events.iter().filter(waits).count() as u64 + self.count(State::Deferred)
    }

    /// How far the line may be settled: up to the first event of which nothing is known.
    pub(super) fn closure(&self) -> u64 {
        let is_open = |event: &Event| event.state == State::Waiting && !event.is_done;
        self.events.iter().position(is_open).unwrap_or(self.events.len()) as u64
    }

    /// The first id's last creation, if it is remembered.
    fn created(&self, first_id: Uuid) -> Option<(u64, Timestamp)> {
        let found = self.ids.iter().find(|(_, (id, _))| *id == first_id);
        found.map(|(position, (_, at))| (*position, *at))
    }

    /// Judges the answers to one batch, and takes over what it has changed.
    pub(super) fn submit(&mut self, answered: &[Answered], moment: Moment) -> Check {
        let outcomes: Vec<_> = answered.iter().map(|(_, outcome)| *outcome).collect();
        if self.health == Some(Refusal::DiskFull) {
            let expected = |(callback, _): &Answered| match callback {
                Ok(record) if self.is_repeat(record, moment.steady) => Ok(Receipt::Duplicate),
                _ => Err(Refusal::DiskFull),
            };
            prop_assert_eq!(outcomes, answered.iter().map(expected).collect::<Vec<_>>());
            return Ok(());
        }
        let all = |refusal| outcomes.iter().all(|outcome| *outcome == Err(refusal));
        if moment.is_locked {
            prop_assert!(all(Refusal::Locked), "the outbox is locked: {:?}", outcomes);
            self.health = Some(Refusal::Locked);
            return Ok(());
        }
        if moment.is_disk_full && all(Refusal::DiskFull) {
            self.health = Some(Refusal::DiskFull); // the whole batch was rolled back
            return Ok(());
        }
        self.take(answered, moment)
    }

    fn is_repeat(&self, record: &Record, now: Timestamp) -> bool {
        self.created(record.event.id).is_some_and(|(_, at)| now.distance(at) < WINDOW)
    }

    fn take(&mut self, answered: &[Answered], moment: Moment) -> Check {
        let is_log_held = moment.log_bytes >= self.settings.max_bytes;
        let mut room = self.settings.max_bytes.saturating_sub(moment.bytes);
        let refusal = if is_log_held { Refusal::LogHeld } else { Refusal::Full };
        if is_log_held {
            room = 0;
        }
        let (mut refused, mut accepted) = (None, 0);
        // Of a batch the events come first.
        let events =
            answered.iter().filter_map(|(callback, got)| Some((callback.as_ref().ok()?, got)));
        for (record, got) in events {
            let expected = self.take_event(record, moment.steady, &mut room, refusal);
            prop_assert_eq!(*got, expected, "topic {}", record.event.topic_id);
            accepted += u64::from(expected == Ok(Receipt::Accepted));
            refused = refused.or(expected.err());
        }
        let malformed =
            answered.iter().filter_map(|(callback, got)| Some((callback.as_ref().err()?, got)));
        for (size, got) in malformed {
            let cost = size + OVERHEAD;
            let expected = if self.quarantined >= self.settings.quarantine_events {
                Err(Refusal::QuarantineFull)
            } else if room < cost {
                Err(refusal)
            } else {
                room -= cost;
                self.quarantined += 1;
                Ok(Receipt::Quarantined)
            };
            prop_assert_eq!(*got, expected, "a malformed callback");
            refused = refused.or(expected.err());
        }
        match refused {
            Some(Refusal::QuarantineFull) => {}
            Some(refusal) => self.health = Some(refusal),
            None if self.health == Some(Refusal::Full) => {}
            None if accepted > 0 => self.health = None,
            None => {}
        }
        self.forget_if_due(moment.steady);
        self.forgets = self.ids.len() as u64 > self.settings.remember_ids_max;
        Ok(())
    }

    fn take_event(
        &mut self,
        record: &Record,
        now: Timestamp,
        room: &mut u64,
        refusal: Refusal,
    ) -> Outcome {
        let first_id = record.event.id;
        let before = self.created(first_id);
        if self.is_repeat(record, now) {
            return Ok(Receipt::Duplicate);
        }
        let event = &record.event;
        let texts =
            [&event.event_type, &event.source, &event.topic_id, &event.group_id, &event.data];
        let cost = texts.iter().map(|text| text.len() as u64).sum::<u64>() + OVERHEAD;
        *room = room.checked_sub(cost).ok_or(refusal)?;
        let position = self.last() + 1;
        let mut event = event.clone();
        if let Some((position, _)) = before {
            event.id = recreated_id(first_id, record.accepted_at);
            self.ids.remove(&position);
        }
        self.ids.insert(position, (first_id, now));
        let accepted_at = record.accepted_at;
        let traceparent = record.traceparent.clone();
        let stored = Stored { position, steady_at: now, accepted_at, event, traceparent };
        self.events.push(Event {
            stored,
            state: State::Waiting,
            is_done: false,
            is_damaged: false,
            is_ahead: false,
            not_before: Timestamp::default(),
            attempts: 0,
            tried_in: 0,
        });
        Ok(Receipt::Accepted)
    }

    fn remember(&self) -> Duration {
        self.settings.remember_ids.max(WINDOW)
    }

    fn forget_if_due(&mut self, now: Timestamp) {
        if !self.forgets {
            return;
        }
        let mut surplus = (self.ids.len() as u64).saturating_sub(self.settings.remember_ids_max);
        while let Some((position, (_, at))) = self.ids.first_key_value() {
            if surplus == 0 && now.distance(*at) < self.remember() {
                break;
            }
            surplus = surplus.saturating_sub(1);
            let position = *position;
            self.ids.remove(&position);
        }
    }

    /// What is due by the clock.
    pub(super) fn tick(&mut self, now: Timestamp) {
        let from = self.expired.max(self.oldest - 1);
        for event in self.events.iter().skip(usize::try_from(from).unwrap()) {
            if now.distance(event.stored.steady_at) < self.settings.history {
                break;
            }
            self.expired = event.stored.position;
        }
        let is_too_old =
            self.ids.values().next().is_some_and(|(_, at)| now.distance(*at) >= self.remember());
        self.forgets = is_too_old || self.ids.len() as u64 > self.settings.remember_ids_max;
    }

    /// What a tick makes of a refusal.
    pub(super) fn health_after_tick(&mut self, seen: &Seen, bytes: [u64; 2]) -> Check {
        let max = self.settings.max_bytes;
        let is_full = |used: u64| used + used / 100 >= max;
        let may_stay = match self.health {
            None => return Ok(()),
            Some(Refusal::Full) => is_full(bytes[0].max(bytes[1])),
            Some(Refusal::LogHeld) => seen.rest.log_bytes >= max,
            Some(Refusal::DiskFull) => seen.is_disk_full,
            _ => seen.is_locked,
        };
        let may_end = match self.health {
            Some(Refusal::Full) => !is_full(bytes[0].min(bytes[1])),
            Some(Refusal::DiskFull) => !seen.is_disk_full,
            Some(Refusal::Locked) => !seen.is_locked,
            _ => true,
        };
        let is_over = seen.health != self.health && may_end;
        prop_assert!(is_over || may_stay || seen.is_locked, "{:?} stays", self.health);
        if is_over {
            self.health = None;
        }
        Ok(())
    }

    /// What must hold whenever nothing more is done by itself.
    pub(super) fn rest(&mut self, seen: &Seen, now: Timestamp) -> Check {
        if self.forgets && !seen.rest.forgets {
            self.forget_if_due(now);
            self.forgets = false;
        }
        prop_assert_eq!(self.forgets, seen.rest.forgets, "ids are forgotten in time");
        self.check_health(seen)?;
        self.check_history(seen)?;
        prop_assert_eq!([seen.last, seen.newest], [self.last(); 2], "positions are dense");
        let closure = self.closure();
        prop_assert!(seen.settled_through <= closure, "settled {seen:?}, open from {closure}");
        prop_assert!(seen.settled_through >= self.settled_through, "the watermark goes back");
        self.settled_through = seen.settled_through;
        prop_assert_eq!(seen.deferred, self.count(State::Deferred), "deferred");
        prop_assert_eq!(seen.dead_letters, self.count(State::Dead), "dead letters");
        prop_assert_eq!(seen.quarantined, self.quarantined, "quarantined");
        prop_assert_eq!(seen.pending, seen.last - seen.settled_through + seen.deferred, "pending");
        Ok(())
    }

    fn check_health(&mut self, seen: &Seen) -> Check {
        if seen.is_locked && seen.rest.has_work() && self.health != Some(Refusal::DiskFull) {
            self.health = Some(Refusal::Locked);
        }
        if seen.is_disk_full && seen.health == Some(Refusal::DiskFull) {
            self.health = seen.health; // whatever was to be written did not fit
        }
        prop_assert_eq!(seen.health, self.health, "health");
        Ok(())
    }

    fn check_history(&mut self, seen: &Seen) -> Check {
        let too_many = self.last().saturating_sub(self.settings.history_events);
        let through = self.expired.max(too_many).min(seen.settled_through);
        let expected = self.oldest.max(through + 1);
        if self.settings.history_gives_way || seen.rest.has_surplus {
            prop_assert!(seen.oldest >= self.oldest && seen.oldest <= seen.settled_through + 1);
        } else {
            prop_assert_eq!(seen.oldest, expected, "the oldest that is kept");
        }
        self.oldest = seen.oldest;
        Ok(())
    }

    /// The relay waits for nothing any more: what it has settled counts.
    pub(super) fn written(&mut self, cursor: u64) -> Check {
        for Effect { position, state, attempts, not_before } in
            std::mem::take(&mut self.outstanding)
        {
            let event = self.event(position).expect("it was delivered");
            (event.state, event.attempts, event.not_before) = (state, attempts, not_before);
        }
        let closure = self.closure();
        for event in self.events.iter_mut().skip(usize::try_from(closure).unwrap()) {
            event.is_ahead |= event.is_done;
        }
        prop_assert!(cursor <= closure, "handed over up to {cursor}, open from {closure}");
        let next = self.event(cursor + 1);
        let is_ahead = next.is_some_and(|event| event.is_ahead);
        prop_assert!(cursor == closure || is_ahead, "only {cursor} of {closure} count");
        Ok(())
    }

    /// Events that were damaged before they were settled, and are not dead letters yet.
    pub(super) fn damaged(&self) -> Vec<u64> {
        let events =
            self.events.iter().filter(|event| event.is_damaged && event.state != State::Dead);
        events.map(|event| event.stored.position).collect()
    }

    /// After a start, whose watermark is `settled_through`.
    pub(super) fn restart(
        &mut self,
        settled_through: u64,
        now: Timestamp,
        retry_max: Duration,
    ) -> Check {
        self.outstanding.clear();
        for event in &mut self.events {
            let position = event.stored.position;
            if position > settled_through {
                prop_assert_eq!(event.state, State::Waiting, "{} is written as settled", position);
            } else if event.state == State::Waiting {
                prop_assert!(event.is_done, "{position} is lost");
                event.state = State::Delivered;
            }
            event.is_done = event.state == State::Delivered;
            event.is_ahead = false;
            if event.not_before > now + retry_max {
                event.not_before = Timestamp::default(); // of a clock that was wrong
            }
        }
        for (_, at) in self.ids.values_mut().filter(|(_, at)| *at > now + WINDOW) {
            *at = now - WINDOW;
        }
        (self.expired, self.health, self.settled_through) = (0, None, settled_through);
        (self.has_delivered, self.retried_at) = (false, now);
        self.tick(now);
        Ok(())
    }
}
