//! The brokers that `tests/run.sh` starts: where they are, what of theirs a test uses for itself, and
//! how they are stopped and frozen. A test that does either has the broker alone meanwhile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Kafka,
    Rabbitmq,
    Nats,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Kafka => "kafka",
            Kind::Rabbitmq => "rabbitmq",
            Kind::Nats => "nats",
        }
    }

    /// Whether a second server of this kind can be started beside the first.
    pub(crate) fn has_second(self) -> bool {
        let has = std::env::var("BRIDGE_TEST_KAFKA_2").is_ok() && self == Kind::Kafka;
        if !has {
            eprintln!("SKIPPED: there is no second {} here", self.name());
        }
        has
    }

    fn lock(self) -> &'static RwLock<()> {
        static LOCKS: [RwLock<()>; 3] = [RwLock::new(()), RwLock::new(()), RwLock::new(())];
        &LOCKS[self as usize]
    }
}

/// The broker as many tests use it at once.
pub(crate) struct Shared {
    pub(crate) target: Target,
    _guard: RwLockReadGuard<'static, ()>,
}

/// The broker as one test has it alone. It runs again when this is dropped.
pub(crate) struct Alone {
    pub(crate) target: Target,
    _guard: RwLockWriteGuard<'static, ()>,
}

/// Nothing where the run is told to leave this broker out.
pub(crate) fn shared(kind: Kind) -> Option<Shared> {
    let target = Target::new(kind)?;
    let guard = kind.lock().read().unwrap_or_else(PoisonError::into_inner);
    Some(Shared { target, _guard: guard })
}

/// Nothing where the run is told to leave this broker out.
pub(crate) fn alone(kind: Kind) -> Option<Alone> {
    let target = Target::new(kind)?;
    let guard = kind.lock().write().unwrap_or_else(PoisonError::into_inner);
    Some(Alone { target, _guard: guard })
}

impl Alone {
    /// `stop`, `kill`, `start`, `pause`, `resume`; for RabbitMQ also `ctl …`.
    pub(crate) fn control(&self, verb: &[&str]) -> String {
        control(self.target.kind.name(), verb)
    }

    /// The same for a second server of the cluster.
    pub(crate) fn control_second(&self, verb: &str) {
        control(&format!("{}-2", self.target.kind.name()), &[verb]);
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        for verb in ["resume", "start"] {
            let _ =
                Command::new(variable("CONTROL")).args([self.target.kind.name(), verb]).output();
        }
    }
}

fn control(server: &str, verb: &[&str]) -> String {
    let output = Command::new(variable("CONTROL")).arg(server).args(verb).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{server} {verb:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// `rabbitmqctl`, for what does not disturb other tests.
pub(crate) fn rabbitmqctl(arguments: &[&str]) -> String {
    control(Kind::Rabbitmq.name(), &[&["ctl"], arguments].concat())
}

pub(crate) fn variable(name: &str) -> String {
    let name = format!("BRIDGE_TEST_{name}");
    std::env::var(&name).unwrap_or_else(|_| panic!("{name} is not set: run this with tests/run.sh"))
}

pub(crate) fn certificate(name: &str) -> String {
    PathBuf::from(variable("CERTS")).join(name).to_str().unwrap().to_owned()
}

/// A topic, queue and exchange, or stream of a test's own.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) address: String,
}

/// A message as somebody else's client has read it.
#[derive(Debug)]
pub(crate) struct Message {
    /// All that the client tells of it.
    pub(crate) raw: Value,
    pub(crate) body: Value,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.raw["headers"].get(name)?.as_str()
    }

    pub(crate) fn topic_id(&self) -> String {
        let data = self.body.get("data").unwrap_or(&self.body);
        data["topic_id"].as_str().unwrap().to_owned()
    }
}

impl Target {
    fn new(kind: Kind) -> Option<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let without = std::env::var("BRIDGE_TEST_WITHOUT").unwrap_or_default();
        if without.split_whitespace().any(|name| name == kind.name()) {
            eprintln!("SKIPPED: this run is without {}", kind.name());
            return None;
        }
        let address = variable(&kind.name().to_uppercase());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Some(Target { kind, name, address })
    }

    /// The settings of a bridge that publishes there.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let (name, address) = (self.name.clone(), self.address.clone());
        let mut settings = match self.kind {
            Kind::Kafka => vec![("kafka.brokers", address), ("kafka.topic", name)],
            Kind::Rabbitmq => vec![
                ("rabbitmq.url", address),
                ("rabbitmq.exchange", name.clone()),
                ("rabbitmq.queue", name),
            ],
            Kind::Nats => vec![
                ("nats.servers", address),
                ("nats.subject", format!("{name}.{{sdk_app_id}}")),
                ("nats.stream", name),
            ],
        };
        settings.push(("sink", self.kind.name().into()));
        settings.push(("relay.retry_max", "500ms".into()));
        settings
    }

    /// Makes or changes what the broker has under this name, as an operator would beforehand.
    pub(crate) fn make(&self, wanted: &Value) {
        self.script("make.py", &wanted.to_string());
    }

    fn script(&self, script: &str, argument: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/brokers").join(script);
        let output = Command::new(variable("PYTHON"))
            .arg(script)
            .args([self.kind.name(), &self.address, &self.name, argument])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// All that was published, once `count` different events are there. Takes them out of a queue.
    pub(crate) fn read(&self, count: usize) -> Vec<Message> {
        let text = self.script("read.py", &count.to_string());
        let message = |line: &str| {
            let raw: Value = serde_json::from_str(line).unwrap();
            let body = serde_json::from_str(raw["body"].as_str().unwrap()).unwrap();
            Message { raw, body }
        };
        text.lines().map(message).collect()
    }
}
