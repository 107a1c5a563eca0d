//! A bridge with a real broker, callbacks to it, and the conditions that a test waits for.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use crate::bridge::is_delivered;
use crate::bridge::{self, Bridge, TOPIC_CREATED};
use crate::broker::{Message, Target};
use crate::http;

/// Each check against each of the real servers.
macro_rules! against_each_broker {
    ($($(#[$doc:meta])* $test:ident)*) => {$(
        $(#[$doc])*
        mod $test {
            #[test]
            #[ignore = "needs brokers: run tests/run.sh"]
            fn kafka() {
                super::checks::$test(crate::broker::Kind::Kafka);
            }

            #[test]
            #[ignore = "needs brokers: run tests/run.sh"]
            fn rabbitmq() {
                super::checks::$test(crate::broker::Kind::Rabbitmq);
            }

            #[test]
            #[ignore = "needs brokers: run tests/run.sh"]
            fn nats() {
                super::checks::$test(crate::broker::Kind::Nats);
            }
        }
    )*};
}
pub(crate) use against_each_broker;

/// Refused connections, and confirmations that do not come, are to be noticed soon.
const SOON: (&str, &str) = ("relay.confirm_timeout", "3s");

pub(crate) fn start(target: &Target, more: &[(&str, &str)]) -> Bridge {
    let settings = target.settings();
    let settings = settings.iter().map(|(key, value)| (*key, value.as_str()));
    Bridge::start(&settings.chain([SOON]).chain(more.iter().copied()).collect::<Vec<_>>())
}

pub(crate) fn call(bridge: &Bridge, topic_id: &str) {
    let reply = bridge.call(&bridge::body(topic_id));
    assert_eq!(reply.status, 200, "{reply:?}");
}

pub(crate) fn call_many(bridge: &Bridge, prefix: &str, count: usize) -> Vec<String> {
    let topics: Vec<_> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    for topic in &topics {
        call(bridge, topic);
    }
    topics
}

/// Waits for a state of the sink that it has told itself; how it got there stands in the log.
pub(crate) fn becomes(bridge: &Bridge, wanted: &str) {
    let began = Instant::now();
    loop {
        let sink = bridge.readiness().1["sink"].take();
        if sink["state"] == wanted && sink["reason"] != "not asked yet" {
            return;
        }
        let is_late = began.elapsed() > Duration::from_secs(40);
        assert!(!is_late, "the sink never became {wanted}: {sink}\n{}", bridge.log());
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn topic_ids(messages: &[Message]) -> BTreeSet<String> {
    messages.iter().map(Message::topic_id).collect()
}

/// Where repeats are, they have the id of the first.
pub(crate) fn check_ids(messages: &[Message]) {
    let mut ids: HashMap<String, String> = HashMap::new();
    for message in messages {
        let id = message.body["id"].as_str().unwrap().to_owned();
        let first = ids.entry(message.topic_id()).or_insert_with(|| id.clone());
        assert_eq!(*first, id, "one id on every attempt");
    }
}

/// Callbacks one after the other from a thread of their own, until told to stop or the bridge is gone.
pub(crate) struct Calls {
    is_over: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<String>>>,
    thread: thread::JoinHandle<()>,
}

impl Calls {
    pub(crate) fn start(bridge: &Bridge, prefix: &str) -> Self {
        let (address, prefix) = (bridge.ingress, prefix.to_owned());
        let is_over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let (over, ok) = (is_over.clone(), answered.clone());
        let thread = thread::spawn(move || {
            let began = Instant::now();
            for number in 0.. {
                if over.load(Ordering::Relaxed) || began.elapsed() > Duration::from_secs(120) {
                    return;
                }
                let topic = format!("{prefix}-{number}");
                let target = bridge::signed(TOPIC_CREATED, &[]);
                let body = bridge::body(&topic);
                match http::try_post(address, &target, body.as_bytes()) {
                    Ok(reply) => {
                        assert_eq!(reply.status, 200, "{reply:?}");
                        ok.lock().unwrap().push(topic);
                    }
                    Err(_) => return, // killed
                }
                thread::sleep(Duration::from_millis(1)); // a pace, so that reading them back stays short
            }
        });
        Calls { is_over, answered, thread }
    }

    /// The topics whose callbacks were answered OK.
    pub(crate) fn stop(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.answered.lock().unwrap().clone()
    }
}
