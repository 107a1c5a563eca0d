//! What the log says about refused callbacks.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::CallbackOutcome;

/// How often the log repeats that callbacks are refused for the same reason.
const REMINDER: Duration = Duration::from_secs(60);

/// Warns the operator that callbacks are refused, and why: at once, then once a minute with a count,
/// because a wrong token, for example, refuses all callbacks.
#[derive(Default)]
pub(super) struct ThrottledWarnings {
    /// By hint: when it was last logged, and how often it has occurred since.
    last: Mutex<HashMap<&'static str, (Option<Instant>, u64)>>,
}

impl ThrottledWarnings {
    pub(super) fn warn(&self, outcome: CallbackOutcome, reason: &str) {
        let hint = match outcome {
            CallbackOutcome::UnknownApp => "is the app among [[apps]]?",
            CallbackOutcome::Unauthenticated => {
                "is the token the one in the platform's console, and authentication switched on there?"
            }
            CallbackOutcome::Stale => "is this host's clock right?",
            CallbackOutcome::Malformed => "look at `topic-bridge outbox list --quarantined`",
            CallbackOutcome::TooLarge => {
                "raise ingress.max_body_bytes if the platform sends so much"
            }
            CallbackOutcome::Timeout => "is something slow between the platform and this bridge?",
            _ => "look at /readyz, the disk, and ingress.max_in_flight",
        };
        let mut last_by_hint = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = last_by_hint.entry(hint).or_default();
        *count += 1;
        if last.is_some_and(|last| last.elapsed() < REMINDER) {
            return;
        }
        *last = Some(Instant::now());
        let count = std::mem::take(count);
        drop(last_by_hint);
        tracing::warn!(reason, count, hint, "refused callbacks");
    }
}
