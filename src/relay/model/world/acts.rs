//! What an operator does in the middle of a history.

use proptest::prelude::*;

use super::super::oracle::{Check, State};
use super::World;
use crate::config::Keys;
use crate::event;
use crate::outbox::{Act, Filter, Of, Order, Tally};
use crate::time::Timestamp;

impl World {
    /// An operator has dead letters retried, or what is delivered replayed. On a file that takes nothing nothing is
    /// ordered.
    pub(super) async fn act(&mut self, act: Act) -> Check {
        if self.lock.is_some() || self.is_disk_full || self.oracle.health.is_some() {
            return Ok(());
        }
        let (of, since) = match act {
            Act::Replay => (None, Some(Timestamp::default())),
            _ => (Some(Of::Dead), None),
        };
        let order = Order { of, filter: Filter { since, ..Filter::default() }, ..Order::default() };
        let expected = match act {
            Act::Replay => self.replayable(),
            _ => self.dead(),
        };
        let naming = event::Config::read(&mut Keys::defaults());
        let Tally { matched, done, stopped, .. } = self.outbox.perform(act, &order, &naming).await;
        self.trace.push(format!("{act:?}: {done} of {matched}, {stopped:?}"));
        prop_assert_eq!(matched, expected.len() as u64, "{:?} of {:?}", act, expected);
        prop_assert!(done == matched || act == Act::Replay && stopped.is_some(), "{stopped:?}");
        for position in expected.into_iter().take(usize::try_from(done).unwrap()) {
            let event = self.oracle.event(position).expect("it was accepted");
            (event.state, event.is_done, event.attempts) = (State::Deferred, false, 0);
            event.not_before = Timestamp::default();
        }
        Ok(())
    }

    fn dead(&self) -> Vec<u64> {
        let dead = self.oracle.events.iter().filter(|event| event.state == State::Dead);
        dead.map(|event| event.stored.position).collect()
    }

    /// Delivered, written as such, and still in the history.
    fn replayable(&self) -> Vec<u64> {
        let before_oldest = self.reader.run_here(|reading| reading.before_oldest()).unwrap();
        let settled_through = self.outbox.settled_through();
        let delivered = self.oracle.events.iter().filter(|event| {
            let is_settled = event.state == State::Delivered || event.state == State::Waiting;
            is_settled && (before_oldest + 1..=settled_through).contains(&event.stored.position)
        });
        delivered.map(|event| event.stored.position).collect()
    }
}
