//! Which events were seen before. Two generations of a map: when the younger one is old or large
//! enough, it takes the elder's place, so memory has a bound and nothing needs an expiry queue.

use std::collections::HashMap;
use std::mem;

use uuid::Uuid;

#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Never,
    /// The platform's retry: not another event.
    InsideWindow,
    /// The topic was deleted and created anew: another event.
    BeforeWindow,
}

/// Times are in milliseconds since the epoch.
pub(super) struct Dedupe {
    window: u64,
    /// An entry is kept at least this long, unless `limit` pushes it out…
    keep: u64,
    /// …when as many younger ones have come. At most twice as many are held.
    limit: usize,
    /// Of the batch that is being committed.
    staged: HashMap<Uuid, u64>,
    younger: HashMap<Uuid, u64>,
    elder: HashMap<Uuid, u64>,
    younger_since: u64,
}

impl Dedupe {
    pub(super) fn new(window: u64, keep: u64, limit: usize) -> Self {
        let (staged, younger, elder) = (HashMap::new(), HashMap::new(), HashMap::new());
        Dedupe { window, keep: keep.max(window), limit, staged, younger, elder, younger_since: 0 }
    }

    pub(super) fn seen(&self, first_id: Uuid, now: u64) -> Seen {
        let maps = [&self.staged, &self.younger, &self.elder];
        match maps.into_iter().find_map(|map| map.get(&first_id)) {
            None => Seen::Never,
            // A clock that was set back makes `now` the smaller one: still the same retry.
            Some(accepted_at) if now.saturating_sub(*accepted_at) < self.window => {
                Seen::InsideWindow
            }
            Some(_) => Seen::BeforeWindow,
        }
    }

    /// Counts as seen from now on, and for good after [`Dedupe::commit`].
    pub(super) fn stage(&mut self, first_id: Uuid, accepted_at: u64) {
        self.staged.insert(first_id, accepted_at);
    }

    pub(super) fn commit(&mut self) {
        let mut staged = mem::take(&mut self.staged);
        for (first_id, accepted_at) in staged.drain() {
            self.remember(first_id, accepted_at);
        }
        self.staged = staged; // keeps its memory for the next batch
    }

    pub(super) fn roll_back(&mut self) {
        self.staged.clear();
    }

    pub(super) fn remember(&mut self, first_id: Uuid, accepted_at: u64) {
        let is_old = accepted_at.saturating_sub(self.younger_since) >= self.keep;
        if is_old || self.younger.len() >= self.limit {
            self.elder = mem::take(&mut self.younger);
            self.younger_since = accepted_at;
        }
        self.younger.insert(first_id, accepted_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn the_window_ends_to_the_millisecond() {
        let mut dedupe = Dedupe::new(600, 1000, 10);
        assert_eq!(dedupe.seen(id(1), 5000), Seen::Never);
        dedupe.remember(id(1), 5000);
        assert_eq!(dedupe.seen(id(1), 5599), Seen::InsideWindow);
        assert_eq!(dedupe.seen(id(1), 5600), Seen::BeforeWindow);
        assert_eq!(dedupe.seen(id(1), 4000), Seen::InsideWindow, "the clock was set back");
    }

    #[test]
    fn a_batch_that_was_not_committed_was_not_seen() {
        let mut dedupe = Dedupe::new(600, 1000, 10);
        dedupe.stage(id(1), 0);
        assert_eq!(dedupe.seen(id(1), 1), Seen::InsideWindow);
        dedupe.roll_back();
        assert_eq!(dedupe.seen(id(1), 1), Seen::Never);
        dedupe.stage(id(1), 0);
        dedupe.commit();
        assert_eq!(dedupe.seen(id(1), 1), Seen::InsideWindow);
    }

    #[test]
    fn the_latest_of_several_creations_counts() {
        let mut dedupe = Dedupe::new(600, 1000, 2);
        for (first_id, at) in [(1, 0), (2, 0), (1, 700)] {
            dedupe.remember(id(first_id), at);
        }
        assert_eq!(dedupe.seen(id(1), 1200), Seen::InsideWindow);
    }

    #[test]
    fn memory_has_a_bound() {
        let mut dedupe = Dedupe::new(600, 1000, 100);
        for number in 0..10_000 {
            dedupe.remember(id(number), 0);
        }
        assert!(dedupe.younger.len() + dedupe.elder.len() <= 200);
        assert_eq!(dedupe.seen(id(9_950), 0), Seen::InsideWindow);
        assert_eq!(dedupe.seen(id(0), 0), Seen::Never);
    }

    #[test]
    fn an_entry_is_kept_for_its_time() {
        let mut dedupe = Dedupe::new(600, 1000, 100);
        dedupe.remember(id(1), 10_000);
        dedupe.remember(id(2), 10_999);
        dedupe.remember(id(3), 11_000);
        assert_eq!(dedupe.seen(id(1), 10_599), Seen::InsideWindow);
        dedupe.remember(id(4), 12_000);
        assert_eq!(dedupe.seen(id(1), 12_000), Seen::Never);
        assert_eq!(dedupe.seen(id(3), 12_000), Seen::BeforeWindow);
    }
}
