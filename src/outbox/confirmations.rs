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

#[cfg(test)]
mod tests {
    use super::super::fixtures::{self, START, record};
    use super::super::{Again, Outbox, Receipt, Refused, Settlement};
    use super::*;
    use crate::time::Clock;
    use oneshot::error::TryRecvError::{Closed, Empty};
    use tempfile::TempDir;

    /// Appends a topic's callback as one whose answer waits for the broker.
    async fn waits(outbox: &Outbox, topic: &str) -> (Receipt, oneshot::Receiver<()>) {
        let (confirm, confirmed) = oneshot::channel();
        let record = super::super::Record { confirm: Some(confirm), ..record(topic, START) };
        (outbox.append(record).unwrap().await.unwrap().unwrap(), confirmed)
    }

    fn bench() -> (TempDir, Outbox, super::super::Workers) {
        let folder = tempfile::tempdir().unwrap();
        let config = fixtures::settings(folder.path());
        let (outbox, workers) = fixtures::open(&config, &Clock::system());
        (folder, outbox, workers)
    }

    #[tokio::test]
    async fn each_waits_for_its_own_event_and_a_repeat_for_the_first() {
        let (_folder, outbox, workers) = bench();
        let mut waiting = Vec::new();
        for topic in ["one", "two", "one", "three"] {
            waiting.push(waits(&outbox, topic).await.1);
        }
        let mut found = |expected: [Result<(), _>; 4]| {
            let now: Vec<_> = waiting.iter_mut().map(|confirmed| confirmed.try_recv()).collect();
            assert_eq!(now, expected);
        };
        found([Err(Empty), Err(Empty), Err(Empty), Err(Empty)]);
        outbox.confirm(2);
        found([Err(Empty), Ok(()), Err(Empty), Err(Empty)]);
        outbox.give_up(3);
        outbox.confirm(1);
        found([Ok(()), Err(Closed), Ok(()), Err(Closed)]);
        assert_eq!(outbox.shared.confirmations.count.load(Relaxed), 0);
        fixtures::close(workers).await;
    }

    #[tokio::test]
    async fn a_repeat_of_what_is_settled_is_told_at_once_what_became_of_it() {
        let (_folder, outbox, workers) = bench();
        for topic in ["delivered", "dead", "deferred"] {
            outbox.append(record(topic, START)).unwrap().await.unwrap().unwrap();
        }
        let reason = || "because".to_owned();
        let settlement = Settlement {
            through: 3,
            refused: vec![Refused { position: 2, at: START, reason: reason() }],
            again: vec![Again { position: 3, attempts: 1, not_before: START, reason: reason() }],
            ..Settlement::default()
        };
        outbox.settle(settlement).await.unwrap();
        let (receipt, mut delivered) = waits(&outbox, "delivered").await;
        assert_eq!((receipt, delivered.try_recv()), (Receipt::Duplicate, Ok(())));
        assert_eq!(waits(&outbox, "dead").await.1.try_recv(), Err(Closed));
        let mut deferred = waits(&outbox, "deferred").await.1;
        assert_eq!(deferred.try_recv(), Err(Empty));
        outbox.confirm(3);
        assert_eq!(deferred.try_recv(), Ok(()));
        fixtures::close(workers).await;
    }

    #[test]
    fn those_that_have_given_up_do_not_pile_up() {
        let confirmations = Confirmations::default();
        let mut kept = Vec::new();
        for position in 0..10 * TIDY_AT as u64 {
            let (confirm, confirmed) = oneshot::channel();
            confirmations.add(position, confirm);
            if position < 10 {
                kept.push(confirmed);
            }
        }
        assert!(confirmations.count.load(Relaxed) <= TIDY_AT);
        confirmations.settle(7, true);
        assert_eq!(kept[7].try_recv(), Ok(()));
    }
}
