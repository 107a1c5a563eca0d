//! The log: to stderr, as text or JSON lines, at the configured level. Logging never blocks: a thread of its own
//! writes, and what does not fit into its buffer while stderr is not being read is dropped and counted.

mod queue;

use std::io::stderr;
use std::sync::Arc;

use anstream::{AutoStream, ColorChoice};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use self::queue::Queue;
use crate::config::value::choice;
use crate::config::{Keys, Value};

/// `[log]`.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    level: LevelFilter,
    is_json: bool,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        Config {
            level: keys.read("log.level", level),
            is_json: keys
                .read("log.format", |value| choice(value, &[("text", false), ("json", true)])),
        }
    }
}

impl Config {
    pub(crate) fn level(&self) -> LevelFilter {
        self.level
    }
}

fn level(value: &Value) -> Result<LevelFilter, String> {
    choice(
        value,
        &[
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ],
    )
}

/// The broker clients, and the most that each may say. They repeatedly log a lost connection, which the relay
/// reports once, with what it means: so they are silent unless the level is `debug` or `trace`. Even then they do not
/// say everything: at `debug` async-nats logs its URL with the password, and at `trace` lapin logs frames that it
/// receives or discards, which hold messages and its login. librdkafka's lines all come at `debug`, from
/// `sink/kafka`; it leaves secrets out itself.
const BROKER_CLIENTS: [(&str, LevelFilter); 4] = [
    ("async_nats", LevelFilter::INFO),
    ("lapin", LevelFilter::INFO),
    ("librdkafka", LevelFilter::DEBUG),
    ("rdkafka", LevelFilter::INFO),
];

/// Libraries log from `warn` upwards: at `trace`, an HTTP library logs headers.
fn filter(config: &Config) -> Targets {
    let is_chatty = config.level >= LevelFilter::DEBUG;
    let clients = BROKER_CLIENTS
        .map(|(client, most)| (client, if is_chatty { most } else { LevelFilter::OFF }));
    Targets::new()
        .with_default(config.level.min(LevelFilter::WARN))
        .with_target("topic_bridge", config.level)
        .with_targets(clients)
}

/// The log of this process.
#[derive(Clone)]
pub struct Log {
    queue: Arc<Queue>,
    filter: reload::Handle<Targets, Registry>,
}

impl Log {
    /// Starts it. A second bridge in the same process, as in a test, shares the first one's.
    pub(crate) fn start(config: &Config) -> Self {
        let queue = Queue::start();
        let lines = fmt::layer()
            .with_writer(queue.clone())
            .with_ansi(AutoStream::choice(&stderr()) != ColorChoice::Never)
            .with_target(false);
        let lines = if config.is_json { lines.json().boxed() } else { lines.boxed() };
        let (filter, handle) = reload::Layer::new(filter(config));
        let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
        Log { queue, filter: handle }
    }

    /// Changes the level while the bridge is running; the format stays as it is.
    pub(crate) fn set_level(&self, config: &Config) {
        // An error means that the subscriber is gone, which was the first bridge's, in the same process.
        let _ = self.filter.reload(filter(config));
    }

    /// How many lines have been dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// Waits until everything is written, but not for long: nobody may be reading.
    pub fn flush(&self) {
        self.queue.flush();
    }
}
