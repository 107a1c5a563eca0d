//! Who waits for the broker's confirmation of an event: with `ingress.answer = "delivered"`, its callback's
//! answer. The relay passes each confirmation on. Nothing here is durable, and nothing depends on it: whoever
//! waits has a deadline of its own, and the event is safe in any case.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::Shared;

/// At so many, those that have given up are removed: nobody tells when an outage is long.
const TIDY_AT: usize = 4096;

/// Completes when the event is delivered, and fails if it never will be.
pub(super) type Waiter = oneshot::Sender<()>;

#[derive(Default)]
pub(super) struct Confirmations {
    /// By position, and a number because a repeated callback waits for the same event.
    waiting: Mutex<BTreeMap<(u64, u64), Waiter>>,
    /// How many, so that the relay takes no lock where nobody waits.
    count: AtomicUsize,
}

impl Confirmations {
    fn add(&self, position: u64, waiter: Waiter) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= TIDY_AT {
            waiting.retain(|_, waiter| !waiter.is_closed());
        }
        let last = waiting.range((position, 0)..=(position, u64::MAX)).next_back();
        let number = last.map_or(0, |((_, number), _)| number + 1);
        waiting.insert((position, number), waiter);
        self.count.store(waiting.len(), Relaxed);
    }

    /// The event at this position is delivered, or never will be.
    pub(super) fn settle(&self, position: u64, is_delivered: bool) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let all = (position, 0)..=(position, u64::MAX);
        let keys: Vec<_> = waiting.range(all).map(|(key, _)| *key).collect();
        for waiter in keys.iter().filter_map(|key| waiting.remove(key)) {
            if is_delivered {
                let _ = waiter.send(()); // it may have given up
            }
        }
        self.count.store(waiting.len(), Relaxed);
    }
}

/// Lets `waiter` wait for the event at this position, which may already be settled: a repeated callback is one
/// of an event that was accepted earlier.
pub(super) fn expect(connection: &Connection, shared: &Shared, position: u64, waiter: Waiter) {
    shared.confirmations.add(position, waiter);
    let through = shared.settle_through.load(Relaxed).max(shared.settled_through.load(Relaxed));
    if position > through {
        return;
    }
    let is_in = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table} WHERE position = ?1");
        connection.query_row(&sql, [position], |row| row.get::<_, u64>(0)).map(|found| found > 0)
    };
    // Where it is deferred, it is still tried.
    if let (Ok(false), Ok(is_dead)) = (is_in("deferred"), is_in("dead_letters")) {
        shared.confirmations.settle(position, !is_dead);
    }
}
