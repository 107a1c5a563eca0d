//! The sink without a broker: the outbox's own history is the stream, and consumers read it over the
//! private listener. What the relay has read back from the outbox is in the stream already, durably.

use super::Verdict;
use crate::outbox::Stored;

pub(super) fn deliver(events: &[Stored]) -> Vec<Verdict> {
    vec![Verdict::Delivered; events.len()]
}
