//! A sink for tests: its verdicts come from a closure, and it keeps what it was asked.

use std::sync::{Arc, Mutex};

use crate::outbox::Stored;
use crate::verdict::{Reason, Verdict};

type Script = Box<dyn FnMut(&[Stored]) -> Vec<Verdict> + Send + Sync>;
type Readiness = Box<dyn FnMut() -> Result<(), Reason> + Send + Sync>;

/// The positions of each batch, with the verdicts.
pub(crate) type Journal = Arc<Mutex<Vec<Vec<(u64, Verdict)>>>>;

pub(crate) struct Scripted {
    script: Script,
    readiness: Readiness,
    /// How often it leaves the last verdict out.
    pub(crate) forgets: u32,
}

impl Scripted {
    /// `script` judges an event by its position.
    pub(crate) fn new(
        mut script: impl FnMut(u64) -> Verdict + Send + Sync + 'static,
    ) -> (Self, Journal) {
        let journal = Journal::default();
        let kept = journal.clone();
        let judge = move |events: &[Stored]| {
            let verdicts: Vec<_> = events.iter().map(|event| script(event.position)).collect();
            let positions = events.iter().map(|event| event.position);
            kept.lock().unwrap().push(positions.zip(verdicts.clone()).collect());
            verdicts
        };
        (Self::judging(judge, || Ok(())), journal)
    }

    /// `judge` is given whole batches, and may leave verdicts out.
    pub(crate) fn judging(
        judge: impl FnMut(&[Stored]) -> Vec<Verdict> + Send + Sync + 'static,
        readiness: impl FnMut() -> Result<(), Reason> + Send + Sync + 'static,
    ) -> Self {
        Scripted { script: Box::new(judge), readiness: Box::new(readiness), forgets: 0 }
    }

    pub(super) fn ready(&mut self) -> Result<(), Reason> {
        (self.readiness)()
    }

    pub(super) fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let mut verdicts = (self.script)(events);
        if self.forgets > 0 {
            self.forgets -= 1;
            verdicts.pop();
        }
        verdicts
    }
}
