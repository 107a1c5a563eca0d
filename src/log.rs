//! The log: to stderr, as text or JSON lines, at the configured level.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

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

/// They repeatedly log a lost connection; the relay reports it once, with what it means.
const BROKER_CLIENTS: [&str; 4] = ["async_nats", "lapin", "librdkafka", "rdkafka"];

/// Starts the log of this process. Libraries log from `warn` upwards, broker clients only if the level is
/// `debug` or `trace`.
pub(crate) fn start(config: &Config) {
    let libraries = config.level.min(LevelFilter::WARN);
    let filter = Targets::new().with_default(libraries).with_target("topic_bridge", config.level);
    let is_chatty = config.level >= LevelFilter::DEBUG;
    let clients = if is_chatty { config.level } else { LevelFilter::OFF };
    let filter = filter.with_targets(BROKER_CLIENTS.map(|client| (client, clients)));
    let lines =
        fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_target(false);
    let lines = if config.is_json { lines.json().boxed() } else { lines.boxed() };
    // A second bridge in the same process, as in a test, shares the first one's log.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}
