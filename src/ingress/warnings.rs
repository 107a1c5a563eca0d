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
pub(super) struct ThrottledWarnings {
    /// Where to see each of them.
    see: String,
    /// By hint: when it was last logged, and how often it has occurred since.
    last: Mutex<HashMap<&'static str, (Option<Instant>, u64)>>,
}

impl ThrottledWarnings {
    pub(super) fn new(see: String) -> Self {
        ThrottledWarnings { see, last: Mutex::default() }
    }

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
        if let Some(count) = self.is_due(hint) {
            tracing::warn!(reason, count, hint, see = self.see, "refused callbacks");
        }
    }

    pub(super) fn warn_of_mislabelled(&self, reason: &str) {
        let hint = "look at `topic-bridge outbox list --quarantined`, and at what changes the URL on its way";
        if let Some(count) = self.is_due(hint) {
            tracing::warn!(
                reason,
                count,
                hint,
                "callbacks were answered OK, quarantined, and not published"
            );
        }
    }

    pub(super) fn warn_of_backend(&self, reason: &str) {
        let hint = "is the backend behind passthrough.url well?";
        if let Some(count) = self.is_due(hint) {
            let see = &self.see;
            tracing::warn!(
                reason,
                count,
                hint,
                see,
                "callbacks were answered OK without the backend"
            );
        }
    }

    /// How often it has occurred since it was last logged, if it is to be logged again.
    fn is_due(&self, hint: &'static str) -> Option<u64> {
        let mut last_by_hint = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = last_by_hint.entry(hint).or_default();
        *count += 1;
        if last.is_some_and(|last| last.elapsed() < REMINDER) {
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(count))
    }
}
