//! Points in time that the relay compares, on the outbox's clock: nobody sets that, and a test can
//! control it.

use std::time::Duration;

use super::Relay;
use crate::time::Timestamp;

/// A point in time on the steady clock, with a number that orders two in the same millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) at: Timestamp,
    number: u64,
}

impl Relay {
    pub(super) fn moment(&mut self) -> Moment {
        self.moments += 1;
        Moment { at: self.outbox.clock().steady(), number: self.moments }
    }

    pub(super) fn since(&self, at: Timestamp) -> Duration {
        self.outbox.clock().steady().since(at)
    }
}
