//! What the judge has found, and how it is told.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// Of each kind of fault only the first few are told.
const TOLD: u64 = 10;

#[derive(Default)]
pub(crate) struct Verdict {
    /// The numbers of callbacks that were answered OK and are not in the broker.
    pub(crate) lost: BTreeSet<usize>,
    pub(crate) invented: u64,
    /// Other promises.
    pub(crate) broken: u64,
}

impl Verdict {
    pub(crate) fn holds(&self) -> bool {
        self.lost.is_empty() && self.invented == 0 && self.broken == 0
    }

    pub(crate) fn lost(&mut self, number: usize, what: &str) {
        if self.lost.insert(number) {
            tell("LOST", self.lost.len() as u64, what);
        }
    }

    pub(crate) fn invented(&mut self, what: &str) {
        self.invented += 1;
        tell("INVENTED", self.invented, what);
    }

    pub(crate) fn broken(&mut self, what: &str) {
        self.broken += 1;
        tell("BROKEN", self.broken, what);
    }
}

fn tell(word: &str, count: u64, what: &str) {
    if count <= TOLD {
        println!("torture: {word}: {what}");
    }
}

pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    /// By status.
    pub(crate) refused: HashMap<u16, u64>,
    pub(crate) unknown: u64,
    pub(crate) not_sent: u64,
    /// Different callbacks in the broker.
    pub(crate) delivered: u64,
    /// Copies beyond the first.
    pub(crate) repeated: u64,
    /// Answered OK, and deleted by us together with the topic, queue or stream.
    pub(crate) deleted: u64,
    pub(crate) lost: u64,
    pub(crate) invented: u64,
    pub(crate) inversions: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let mut refused: Vec<_> = self.refused.iter().collect();
        refused.sort();
        let by_status: Vec<_> =
            refused.iter().map(|(status, count)| format!("{count} with {status}")).collect();
        let all: u64 = self.refused.values().sum();
        let Counts { sent, ok, unknown, not_sent, delivered, repeated, .. } = self;
        let Counts { deleted, lost, invented, inversions, .. } = self;
        write!(
            formatter,
            "sent {sent}, OK {ok}, refused {all} ({}), unknown {unknown}, no connection {not_sent}, delivered \
             {delivered}, repeated {repeated}, deleted with their topic {deleted}, out of order {inversions}, lost \
             {lost}, invented {invented}",
            by_status.join(", ")
        )
    }
}
