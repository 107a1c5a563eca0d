//! What was sent, and what was answered: all that the judge goes by, beside the broker.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What became of a callback, as the platform sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Ok,
    Refused(u16),
    /// It may have arrived: the connection ended, or no answer came in time.
    Unknown,
    /// It cannot have arrived: there was no connection.
    NotSent,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) lane: usize,
    /// Since the ledger began.
    pub(crate) sent: Duration,
    pub(crate) sends: u32,
    pub(crate) fate: Fate,
    /// With a signature that nobody who knows the token made.
    pub(crate) is_forged: bool,
    /// The clock was moved between two sends of it, so that the second may count as a re-creation.
    pub(crate) is_over_a_step: bool,
}

pub(crate) struct Ledger {
    began: Instant,
    entries: Mutex<Vec<Entry>>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Ledger { began: Instant::now(), entries: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The number of a callback that is about to be sent.
    pub(crate) fn open(&self, lane: usize, is_forged: bool) -> usize {
        let mut entries = self.entries.lock().unwrap();
        let (fate, sent) = (Fate::NotSent, self.now());
        entries.push(Entry { lane, sent, sends: 0, fate, is_forged, is_over_a_step: false });
        entries.len() - 1
    }

    /// One OK is a promise, whatever else was answered.
    pub(crate) fn answered(&self, number: usize, fate: Fate, is_over_a_step: bool) {
        let mut entries = self.entries.lock().unwrap();
        let entry = &mut entries[number];
        entry.sends += u32::from(fate != Fate::NotSent);
        entry.is_over_a_step |= is_over_a_step;
        entry.fate = match (entry.fate, fate) {
            (Fate::Ok, _) | (_, Fate::Ok) => Fate::Ok,
            (Fate::Unknown, _) | (_, Fate::Unknown) => Fate::Unknown,
            (before, Fate::NotSent) => before,
            (_, new) => new,
        };
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }
}
