//! When things were that the relay compares: by the outbox's clock, so that nobody sets it, and a test can.

use std::time::Duration;

use super::Relay;
use crate::time::Timestamp;

/// When something was, by the steady clock; of two in one millisecond, which was first.
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
