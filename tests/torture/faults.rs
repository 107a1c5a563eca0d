//! How each fault begins and ends.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::json;

use crate::broker::{Kind, Verb};
use crate::judge::Judge;
use crate::load::Load;
use crate::plan::{Fault, Plan, What};
use crate::stage::Stage;

/// What can break things.
pub(crate) struct Breaker<'a> {
    pub(crate) stage: &'a mut Stage,
    pub(crate) load: &'a Load,
    pub(crate) judge: &'a mut Judge,
    pub(crate) plan: &'a mut Plan,
    /// A quorum queue that RabbitMQ will know again after a kill.
    pub(crate) is_queue_settled: bool,
}

/// What is taken back at a fault's end.
#[derive(Default)]
struct Held {
    ballast: Option<PathBuf>,
    lock: Option<Connection>,
}

impl Breaker<'_> {
    /// One fault from its beginning to its end.
    pub(crate) fn run(&mut self, fault: &Fault) {
        let mut held = Held::default();
        if fault.what == What::BrokerKilled {
            self.settle_queue();
        }
        self.begin(fault.what, &mut held);
        if !fault.what.is_sudden() {
            thread::sleep(fault.length / 2);
            if let Some(meanwhile) = fault.meanwhile {
                self.begin(meanwhile, &mut held);
            }
            thread::sleep(fault.length / 2);
        }
        self.end(fault.what, held);
        if let Some((delay, then)) = fault.then {
            thread::sleep(delay);
            self.begin(then, &mut Held::default());
        }
    }

    fn begin(&mut self, what: What, held: &mut Held) {
        let proxy = &self.stage.proxy;
        match what {
            What::ConnectionsCut => {
                proxy.close();
                proxy.open(&[]);
            }
            What::ConnectionsReset => proxy.reset(),
            What::ConnectionsRefused => proxy.close(),
            What::ConnectionsDelayed => proxy.delay(Duration::from_millis(150)),
            What::ConnectionsHalfOpen => proxy.hold_up(true),
            What::BrokerStopped => {
                self.stage.broker.tell(Verb::Stop);
                self.is_queue_settled = true;
            }
            What::BrokerKilled => self.stage.broker.tell(Verb::Kill),
            What::BrokerPaused => self.stage.broker.tell(Verb::Pause),
            What::BridgeKilled => self.restart_bridge(),
            What::BridgeStopped => {
                self.stage.stop_bridge();
                self.restart_bridge();
            }
            What::DiskFull => {
                held.ballast = self.stage.disk.as_ref().map(|disk| disk.fill_up(0));
            }
            What::OutboxLocked => {
                let lock = Connection::open(self.stage.bridge().outbox()).unwrap();
                lock.busy_timeout(Duration::from_secs(10)).unwrap();
                lock.execute_batch("BEGIN IMMEDIATE").unwrap();
                held.lock = Some(lock);
            }
            What::ClockStepped => self.stage.move_clock(self.plan.step()),
            What::TopologyTakenAway => self.take_away(),
            What::CredentialsRevoked => {
                let ctl =
                    |arguments: &[&str]| drop(self.stage.broker.target.rabbitmqctl(arguments));
                ctl(&["clear_permissions", "guest"]);
                ctl(&["close_all_connections", "torture"]);
            }
        }
    }

    fn end(&mut self, what: What, held: Held) {
        let (proxy, broker) = (&self.stage.proxy, &self.stage.broker);
        match what {
            What::ConnectionsRefused => proxy.open(&[]),
            What::ConnectionsDelayed => proxy.delay(Duration::ZERO),
            What::ConnectionsHalfOpen => proxy.hold_up(false),
            What::BrokerStopped | What::BrokerKilled => broker.tell(Verb::Start),
            What::BrokerPaused => broker.tell(Verb::Resume),
            What::DiskFull => held.ballast.iter().for_each(|file| fs::remove_file(file).unwrap()),
            What::OutboxLocked => drop(held.lock),
            What::CredentialsRevoked => {
                broker.target.rabbitmqctl(&["set_permissions", "guest", ".*", ".*", ".*"]);
            }
            _ => {}
        }
    }

    fn restart_bridge(&mut self) {
        self.stage.restart_bridge(self.plan.answer());
        self.load.moves_to(self.stage.bridge().ingress);
    }

    /// RabbitMQ writes down that a quorum queue exists only minutes later, or when it is stopped. Killed before, it
    /// comes back with a queue that has no leader: its loss, which no bridge can mend.
    fn settle_queue(&mut self) {
        if self.stage.kind() == Kind::Rabbitmq && !self.is_queue_settled {
            self.stage.broker.tell(Verb::Stop);
            self.stage.broker.tell(Verb::Start);
            let _quiet = self.load.pause();
            self.judge.check(self.stage.drains(), "the backlog does not drain after a stop");
            self.is_queue_settled = true;
        }
    }

    /// Deletes what the broker has confirmed, after the judge has seen it; callbacks go on meanwhile, so what is
    /// confirmed between the two is lost by whoever deletes it.
    fn take_away(&mut self) {
        let quiet = self.load.pause();
        self.judge.check(self.stage.drains(), "the backlog does not drain between two faults");
        self.judge.read(&self.stage.broker.target);
        let from = self.judge.ledger.now();
        drop(quiet);
        thread::sleep(Duration::from_millis(700)); // not to synchronise: something is to be on its way
        self.stage.broker.target.make(&json!({"delete": true}));
        let margin = Duration::from_secs(1); // a leader may confirm what it is about to forget
        self.judge.excuse(from, self.judge.ledger.now() + margin);
        self.is_queue_settled = false;
    }
}
