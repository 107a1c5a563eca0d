//! A sink for tests: its verdicts come from a closure, and it keeps what it was asked.

use std::sync::{Arc, Mutex};

use super::Verdict;
use crate::outbox::Stored;

type Script = Box<dyn FnMut(u64) -> Verdict + Send + Sync>;

/// The positions of each batch, with the verdicts.
pub(crate) type Journal = Arc<Mutex<Vec<Vec<(u64, Verdict)>>>>;

pub(crate) struct Scripted {
    script: Script,
    journal: Journal,
    /// How often it leaves the last verdict out.
    pub(crate) forgets: u32,
}

impl Scripted {
    /// `script` judges an event by its position.
    pub(crate) fn new(
        script: impl FnMut(u64) -> Verdict + Send + Sync + 'static,
    ) -> (Self, Journal) {
        let journal = Journal::default();
        (Scripted { script: Box::new(script), journal: journal.clone(), forgets: 0 }, journal)
    }

    pub(super) fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let mut verdicts: Vec<_> =
            events.iter().map(|event| (self.script)(event.position)).collect();
        if self.forgets > 0 {
            self.forgets -= 1;
            verdicts.pop();
        }
        let positions = events.iter().map(|event| event.position);
        self.journal.lock().unwrap().push(positions.zip(verdicts.clone()).collect());
        verdicts
    }
}
