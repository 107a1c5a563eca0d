//! The brokers that `servers` starts: what of theirs a test uses for itself, and how they are stopped and
//! frozen. A test that does either has the broker alone meanwhile.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use crate::servers::{self, Broker, installed, setting};

pub(crate) use crate::servers::{Kind, Verb, Way};

fn lock(kind: Kind) -> &'static RwLock<()> {
    static LOCKS: [RwLock<()>; 3] = [RwLock::new(()), RwLock::new(()), RwLock::new(())];
    &LOCKS[kind as usize]
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
    let guard = lock(kind).read().unwrap_or_else(PoisonError::into_inner);
    Some(Shared { target, _guard: guard })
}

/// Nothing where the run is told to leave this broker out.
pub(crate) fn alone(kind: Kind) -> Option<Alone> {
    let target = Target::new(kind)?;
    let guard = lock(kind).write().unwrap_or_else(PoisonError::into_inner);
    Some(Alone { target, _guard: guard })
}

impl Alone {
    pub(crate) fn tell(&self, verb: Verb) {
        self.target.broker.tell(self.target.kind.name(), verb).unwrap();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        for verb in [Verb::Resume, Verb::Start] {
            let _ = self.target.broker.tell(self.target.kind.name(), verb);
        }
    }
}

/// A Python with the clients of `tests/brokers/requirements.txt`.
pub(crate) fn python() -> String {
    match setting("PYTHON") {
        none if none.is_empty() => installed("python/bin/python").to_str().unwrap().to_owned(),
        python => python,
    }
}

/// A topic, queue and exchange, or stream of a test's own.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) broker: &'static Broker,
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
        let broker = servers::shared(kind)?;
        let address = broker.address(Way::Plain).to_owned();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Some(Target { broker, kind, name, address })
    }

    /// The same for who connects in another way.
    pub(crate) fn by(&self, way: Way) -> Self {
        Target { address: self.broker.address(way).to_owned(), ..self.clone() }
    }

    pub(crate) fn certificate(&self, name: &str) -> String {
        self.broker.certificate(name).to_str().unwrap().to_owned()
    }

    /// Other tests must not be disturbed by it, unless this one has the broker alone.
    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        self.broker.rabbitmqctl(arguments).unwrap()
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
        let output = Command::new(python())
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
