//! What is broken, in which order and for how long: drawn from the seed alone.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::broker::Kind;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum What {
    /// Between bridge and broker.
    ConnectionsCut,
    ConnectionsReset,
    ConnectionsRefused,
    ConnectionsDelayed,
    /// They stay open, new ones are accepted, and nothing comes through.
    ConnectionsHalfOpen,
    BrokerStopped,
    BrokerKilled,
    BrokerPaused,
    BridgeKilled,
    BridgeStopped,
    DiskFull,
    OutboxLocked,
    ClockStepped,
    /// The topic, queue or stream is deleted.
    TopologyTakenAway,
    CredentialsRevoked,
}

const ALL: [What; 15] = [
    What::ConnectionsCut,
    What::ConnectionsReset,
    What::ConnectionsRefused,
    What::ConnectionsDelayed,
    What::ConnectionsHalfOpen,
    What::BrokerStopped,
    What::BrokerKilled,
    What::BrokerPaused,
    What::BridgeKilled,
    What::BridgeStopped,
    What::DiskFull,
    What::OutboxLocked,
    What::ClockStepped,
    What::TopologyTakenAway,
    What::CredentialsRevoked,
];

impl What {
    /// Done at once, so it can also happen in the middle of another fault.
    pub(crate) fn is_sudden(self) -> bool {
        use What::{BridgeKilled, BridgeStopped, ClockStepped, ConnectionsCut, ConnectionsReset};
        matches!(
            self,
            BridgeKilled | BridgeStopped | ClockStepped | ConnectionsCut | ConnectionsReset
        )
    }

    /// What the broker accepts changes at some moment, so it may refuse one event of a batch and accept those behind it:
    /// that one is retried on its own, and arrives after them.
    pub(crate) fn may_break_order(self) -> bool {
        use What::{BrokerKilled, BrokerStopped, CredentialsRevoked, TopologyTakenAway};
        matches!(self, BrokerKilled | BrokerStopped | CredentialsRevoked | TopologyTakenAway)
    }

    /// A bridge may not be able to start on a full disk, or beside a lock: that is an operator's matter.
    fn allows(self, meanwhile: What) -> bool {
        let is_of_disk = matches!(self, What::DiskFull | What::OutboxLocked);
        let restarts = matches!(meanwhile, What::BridgeKilled | What::BridgeStopped);
        !(is_of_disk && restarts) && self != What::TopologyTakenAway
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) what: What,
    pub(crate) length: Duration,
    /// In the middle of it.
    pub(crate) meanwhile: Option<What>,
    /// So soon after its end, when the backlog is on its way.
    pub(crate) then: Option<(Duration, What)>,
    /// Before the next one.
    pub(crate) calm: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}", words(self.what))?;
        if !self.what.is_sudden() {
            write!(formatter, " for {:.1} s", self.length.as_secs_f64())?;
        }
        if let Some(meanwhile) = self.meanwhile {
            write!(formatter, ", meanwhile {}", words(meanwhile))?;
        }
        if let Some((delay, then)) = self.then {
            write!(formatter, ", {} ms later {}", delay.as_millis(), words(then))?;
        }
        Ok(())
    }
}

/// "BrokerStopped" as "broker stopped".
pub(crate) fn words(what: What) -> String {
    let mut words = String::new();
    for char in format!("{what:?}").chars() {
        if char.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(char.to_ascii_lowercase());
    }
    words
}

/// An endless sequence: all faults in some order, and again.
pub(crate) struct Plan {
    draw: fastrand::Rng,
    enabled: Vec<What>,
    deck: VecDeque<What>,
}

impl Plan {
    pub(crate) fn new(kind: Kind, seed: u64, only: Option<&str>, has_small_disk: bool) -> Self {
        let is_enabled = |what: &What| {
            let is_possible = match what {
                What::DiskFull => has_small_disk,
                What::CredentialsRevoked => kind == Kind::Rabbitmq, // the others have none here
                _ => true,
            };
            is_possible && only.is_none_or(|only| words(*what).contains(only))
        };
        let enabled: Vec<_> = ALL.into_iter().filter(is_enabled).collect();
        assert!(!enabled.is_empty(), "no fault of {} has {only:?} in its name", kind.name());
        Plan { draw: fastrand::Rng::with_seed(seed), enabled, deck: VecDeque::new() }
    }

    pub(crate) fn next(&mut self) -> Fault {
        let draw = &mut self.draw;
        if self.deck.is_empty() {
            let mut all = self.enabled.clone();
            draw.shuffle(&mut all);
            self.deck = all.into();
        }
        let what = self.deck.pop_front().expect("it was filled just now");
        let tenths =
            |draw: &mut fastrand::Rng, from, to| Duration::from_millis(100 * draw.u64(from..=to));
        let length = tenths(draw, 3, 60);
        let sudden: Vec<_> = self.enabled.iter().filter(|other| other.is_sudden()).collect();
        let another = |draw: &mut fastrand::Rng, one_in: u8| {
            let is_wanted = !sudden.is_empty() && draw.u8(..one_in) == 0;
            is_wanted.then(|| *sudden[draw.usize(..sudden.len())])
        };
        let meanwhile = another(draw, 3).filter(|other| !what.is_sudden() && what.allows(*other));
        let then = another(draw, 2).map(|then| (Duration::from_millis(draw.u64(..1000)), then));
        Fault { what, length, meanwhile, then, calm: tenths(draw, 0, 30) }
    }

    /// How far the clock is moved next: often inside the window of repeats, sometimes by days.
    pub(crate) fn step(&mut self) -> i64 {
        let far = if self.draw.bool() { 3 * 24 * 3600 } else { 120 };
        self.draw.i64(-far..=far)
    }

    pub(crate) fn answer(&mut self) -> &'static str {
        if self.draw.bool() { "durable" } else { "delivered" }
    }
}
