//! A sink for tests: it keeps what it is given, and its verdicts come from a closure.

use std::sync::{Arc, Mutex};

use super::Verdict;
use crate::outbox::Stored;

type Script = Box<dyn FnMut(&Stored) -> Verdict + Send + Sync>;

pub(crate) struct Scripted {
    script: Script,
    delivered: Arc<Mutex<Vec<u64>>>,
}

impl Scripted {
    /// The sink, and the positions that it said were delivered, in the order in which it said so.
    pub(crate) fn new(
        script: impl FnMut(&Stored) -> Verdict + Send + Sync + 'static,
    ) -> (Self, Arc<Mutex<Vec<u64>>>) {
        let delivered = Arc::new(Mutex::new(Vec::new()));
        (Scripted { script: Box::new(script), delivered: delivered.clone() }, delivered)
    }

    pub(super) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let verdicts: Vec<_> = events.iter().map(&mut self.script).collect();
        let mut delivered = self.delivered.lock().unwrap();
        for (event, verdict) in events.iter().zip(&verdicts) {
            if *verdict == Verdict::Delivered {
                delivered.push(event.position);
            }
        }
        verdicts
    }
}
