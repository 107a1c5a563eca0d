//! The configuration: layers (embedded defaults, the user's file, environment, flags) → raw values →
//! a checked [`Config`]. Nothing else reads the environment. All faults are reported at once, each
//! with the place that it came from; a secret is never shown.

mod apps;
mod brokers;
mod keys;
mod layers;
mod value;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::value::{Dict, Value};

use crate::event::{Encoding, Naming};
use crate::signature::App;
use apps::apps;
pub(crate) use apps::read_token;
pub(crate) use brokers::{ClientTls, Declare, Kafka, KafkaKey, Nats, Rabbitmq, address_of};
use keys::Keys;
use value::{
    address, choice, count, duration, file, filled, flag, level, path, positive_duration, size,
    source, whole_seconds,
};

const DEFAULTS: &str = include_str!("../config/default.toml");

/// Text that is printed as `***` wherever somebody prints it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// The checked configuration. The meaning of each key stands in `config/default.toml`.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) sink: SinkKind,
    pub(crate) apps: Vec<App>,
    pub(crate) ingress: Ingress,
    pub(crate) outbox: Outbox,
    pub(crate) relay: Relay,
    pub(crate) naming: Naming,
    pub(crate) encoding: Encoding,
    pub(crate) kafka: Kafka,
    pub(crate) rabbitmq: Rabbitmq,
    pub(crate) nats: Nats,
    pub(crate) admin: Admin,
    pub(crate) log: Log,
    worker_threads: usize,
    effective: Value,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum SinkKind {
    Embedded,
    Kafka,
    Rabbitmq,
    Nats,
}

const SINKS: [(&str, SinkKind); 4] = [
    ("embedded", SinkKind::Embedded),
    ("kafka", SinkKind::Kafka),
    ("rabbitmq", SinkKind::Rabbitmq),
    ("nats", SinkKind::Nats),
];

impl SinkKind {
    pub(crate) fn name(self) -> &'static str {
        SINKS.iter().find(|(_, kind)| *kind == self).expect("SINKS names each").0
    }

    fn is_in_this_build(self) -> bool {
        match self {
            SinkKind::Embedded => true,
            SinkKind::Kafka => cfg!(feature = "kafka"),
            SinkKind::Rabbitmq => cfg!(feature = "rabbitmq"),
            SinkKind::Nats => cfg!(feature = "nats"),
        }
    }
}

fn sink(value: &Value) -> Result<SinkKind, String> {
    let kind = choice(value, &SINKS)?;
    if kind.is_in_this_build() {
        return Ok(kind);
    }
    let name = kind.name();
    Err(format!(
        "{name:?} is not in this build: build with --features {name}, or take the full one"
    ))
}

#[derive(Debug, Clone)]
pub(crate) struct Ingress {
    pub(crate) listen: SocketAddr,
    pub(crate) path: String,
    pub(crate) max_body_bytes: u64,
    pub(crate) request_timeout: Duration,
    pub(crate) ack_deadline: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_skew_seconds: u64,
    pub(crate) max_in_flight: usize,
    pub(crate) max_connections: usize,
    pub(crate) drain_delay: Duration,
    pub(crate) tls: Option<TlsFiles>,
}

#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    pub(crate) path: PathBuf,
    pub(crate) sync: Sync,
    pub(crate) max_bytes: u64,
    pub(crate) dedupe_window: Duration,
    pub(crate) history: Duration,
    pub(crate) history_events: u64,
    pub(crate) remember_ids: Duration,
    pub(crate) remember_ids_max: u64,
    pub(crate) quarantine_events: u64,
    /// Whether delivered events go before their time when there is no room left. Not where they are
    /// the stream.
    pub(crate) history_gives_way: bool,
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sync {
    Full,
    Normal,
    Off,
}

#[derive(Debug, Clone)]
pub(crate) struct Relay {
    pub(crate) batch: usize,
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
    pub(crate) confirm_timeout: Duration,
    pub(crate) drain_timeout: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) listen: SocketAddr,
    pub(crate) max_connections: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) level: tracing::level_filters::LevelFilter,
    pub(crate) json: bool,
}

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} fault{}:\n  {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n  "))]
pub struct Faults(Vec<String>);

impl Faults {
    pub(crate) fn one(fault: String) -> Self {
        Faults(vec![fault])
    }
}

impl Config {
    /// Reads the file (or the one that `TOPIC_BRIDGE_CONFIG` names), the environment, and `set`,
    /// which holds `section.key=value` texts.
    pub fn load(file: Option<PathBuf>, set: &[String]) -> Result<Self, Faults> {
        layers::layer(file, std::env::vars_os(), set).and_then(Self::check)
    }

    /// The defaults and `set`, for tests: the environment may name the brokers of others.
    #[cfg(all(test, feature = "kafka"))]
    pub(crate) fn of(set: &[String]) -> Result<Self, Faults> {
        layers::layer(None, std::iter::empty(), set).and_then(Self::check)
    }

    /// Only where the outbox is, for commands that need no more: whatever else is wrong or missing
    /// shall not keep an operator from looking.
    pub fn outbox_path(file: Option<PathBuf>, set: &[String]) -> Result<PathBuf, Faults> {
        let mut keys = Keys::new(layers::layer(file, std::env::vars_os(), set)?)?;
        let path = keys.read("outbox.path", outbox_file);
        if keys.faults.is_empty() { Ok(path) } else { Err(Faults(keys.faults)) }
    }

    /// Threads that serve HTTP.
    pub fn worker_threads(&self) -> usize {
        self.worker_threads
    }

    fn check(figment: Figment) -> Result<Self, Faults> {
        let mut keys = Keys::new(figment)?;
        let ingress = Ingress {
            listen: keys.read("ingress.listen", address),
            path: keys.read("ingress.path", path),
            max_body_bytes: keys.read("ingress.max_body_bytes", size),
            request_timeout: keys.read("ingress.request_timeout", positive_duration),
            ack_deadline: keys.read("ingress.ack_deadline", positive_duration),
            header_timeout: keys.read("ingress.header_timeout", positive_duration),
            idle_timeout: keys.read("ingress.idle_timeout", positive_duration),
            max_skew_seconds: keys.read("ingress.max_skew", whole_seconds),
            max_in_flight: keys.read("ingress.max_in_flight", count),
            max_connections: keys.read("ingress.max_connections", count),
            drain_delay: keys.read("ingress.drain_delay", duration),
            tls: tls_files(&mut keys),
        };
        let trust_network = keys.read("ingress.trust_network", flag);
        let apps = apps(&mut keys);
        let is_public = !ingress.listen.ip().is_loopback();
        if is_public && !trust_network && apps.iter().any(|app| app.allow_unsigned) {
            keys.faults.push(format!(
                "apps: allow_unsigned beside the public address {} lets anybody in; listen on \
                 127.0.0.1, configure tokens, or set ingress.trust_network = true if the network \
                 keeps others out",
                ingress.listen
            ));
        }
        let sink = keys.read("sink", sink);
        let outbox = Outbox {
            path: keys.read("outbox.path", outbox_file),
            sync: keys.read("outbox.sync", |value| {
                choice(value, &[("full", Sync::Full), ("normal", Sync::Normal), ("off", Sync::Off)])
            }),
            max_bytes: keys.read("outbox.max_bytes", size),
            dedupe_window: keys.read("outbox.dedupe_window", duration),
            history: keys.read("outbox.history", duration),
            history_events: keys.read("outbox.history_events", count),
            remember_ids: keys.read("outbox.remember_ids", duration),
            remember_ids_max: keys.read("outbox.remember_ids_max", count),
            quarantine_events: keys.read("outbox.quarantine_events", count),
            history_gives_way: sink != SinkKind::Embedded,
        };
        let relay = Relay {
            batch: keys.read("relay.batch", count),
            retry_min: keys.read("relay.retry_min", positive_duration),
            retry_max: keys.read("relay.retry_max", positive_duration),
            confirm_timeout: keys.read("relay.confirm_timeout", positive_duration),
            drain_timeout: keys.read("relay.drain_timeout", duration),
        };
        if relay.retry_min > relay.retry_max {
            keys.faults.push("relay.retry_min: is longer than relay.retry_max".into());
        }
        let config = Config {
            sink,
            apps,
            ingress,
            outbox,
            relay,
            naming: Naming {
                event_type: keys.read("event.type", filled),
                source: keys.read("event.source", source),
            },
            encoding: keys.read("event.encoding", |value| {
                let choices = [("structured", Encoding::Structured), ("binary", Encoding::Binary)];
                choice(value, &choices)
            }),
            kafka: brokers::kafka(&mut keys),
            rabbitmq: brokers::rabbitmq(&mut keys),
            nats: brokers::nats(&mut keys),
            admin: Admin {
                listen: keys.read("admin.listen", address),
                max_connections: keys.read("admin.max_connections", count),
            },
            log: Log {
                level: keys.read("log.level", level),
                json: keys
                    .read("log.format", |value| choice(value, &[("text", false), ("json", true)])),
            },
            worker_threads: keys.read("runtime.worker_threads", count),
            effective: Value::from(Dict::new()),
        };
        let effective = keys.finish()?;
        Ok(Config { effective, ..config })
    }

    /// The configuration in force, every secret as `***`.
    pub fn effective_toml(&self) -> String {
        toml::to_string_pretty(&self.effective).expect("figment values are TOML values")
    }

    /// The same as JSON.
    pub fn effective_json(&self) -> String {
        serde_json::to_string_pretty(&self.effective).expect("figment values are JSON values")
    }
}

/// A file that can be an outbox, be it there or not.
fn outbox_file(value: &Value) -> Result<PathBuf, String> {
    let path = file(value)?;
    match crate::outbox::unsuitable(&path) {
        Some(fault) => Err(format!("{:?} {fault}", path.display().to_string())),
        None => Ok(path),
    }
}

fn tls_files(keys: &mut Keys) -> Option<TlsFiles> {
    let cert = keys.read_optional("ingress.tls.cert_file", file);
    let key = keys.read_optional("ingress.tls.key_file", file);
    let client_ca = keys.read_optional("ingress.tls.client_ca_file", file);
    match (cert, key, client_ca) {
        (Some(cert), Some(key), client_ca) => Some(TlsFiles { cert, key, client_ca }),
        (None, None, None) => None,
        _ => {
            keys.faults.push("ingress.tls: needs both cert_file and key_file".into());
            None
        }
    }
}
