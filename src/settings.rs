//! The sections of the configuration, each read by the module that uses it, and checked together. The keys
//! are explained in `config/default.toml`.

mod checks;
#[cfg(test)]
mod documents;
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
#[cfg(test)]
mod schema;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::value::count;
use crate::config::{Faults, Keys, Value};
use crate::log::Log;
use crate::sink::{SinkKind, Terms};
use crate::{admin, event, ingress, log, outbox, passthrough, relay, sink, spans};

#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) ingress: ingress::Config,
    pub(crate) passthrough: passthrough::Config,
    pub(crate) outbox: outbox::Config,
    pub(crate) relay: relay::Config,
    pub(crate) event: event::Config,
    pub(crate) sink: sink::Config,
    pub(crate) admin: admin::Config,
    pub(crate) log: log::Config,
    pub(crate) otlp: spans::Config,
    worker_threads: usize,
    effective: Value,
    /// What it was read from.
    file: Option<PathBuf>,
    set: Vec<String>,
}

/// What the commands that change the outbox need of it.
pub struct ForOutbox {
    pub(crate) outbox: outbox::Config,
    pub(crate) event: event::Config,
    pub(crate) admin: admin::Config,
    pub(crate) sink: SinkKind,
    is_sink_set: bool,
    log: log::Config,
}

impl ForOutbox {
    /// Whether the outbox itself is the stream; of an outbox other than the configuration's only if that says so.
    pub(crate) fn is_embedded(&self, is_other: bool) -> bool {
        self.sink.is_embedded() && (self.is_sink_set || !is_other)
    }

    pub(crate) fn start_log(&self) -> Log {
        Log::start(&self.log)
    }
}

impl Settings {
    /// Reads the file (or the one that `TOPIC_BRIDGE_CONFIG` names), the environment, and `set`,
    /// which holds `section.key=value` texts. Also looks at what a bridge needs on this host.
    pub fn load(file: Option<PathBuf>, set: &[String]) -> Result<Self, Faults> {
        let settings =
            Keys::load(file.clone(), set).and_then(|keys| Self::read(keys, checks::host))?;
        Ok(Settings { file, set: set.to_vec(), ..settings })
    }

    /// Reads the same sources again.
    pub(crate) fn again(&self) -> Result<Self, Faults> {
        Self::load(self.file.clone(), &self.set)
    }

    /// The keys whose effective values differ.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let (mine, theirs) = (leaves(&self.effective), leaves(&other.effective));
        let keys: BTreeSet<_> = mine.keys().chain(theirs.keys()).collect();
        keys.into_iter().filter(|key| mine.get(*key) != theirs.get(*key)).cloned().collect()
    }

    /// The same for a command that serves nothing, and may run on another host.
    pub fn load_for_reading(file: Option<PathBuf>, set: &[String]) -> Result<Self, Faults> {
        Keys::load(file, set).and_then(|keys| Self::read(keys, |_, _| {}))
    }

    /// Reads only the outbox's path, for commands that need nothing else: other faults in the
    /// configuration must not keep an operator from looking.
    pub fn outbox_path(file: Option<PathBuf>, set: &[String]) -> Result<PathBuf, Faults> {
        let mut keys = Keys::load(file, set)?;
        let path = outbox::Config::read_path(&mut keys);
        keys.check().map(|_| path)
    }

    /// The same for commands that change the outbox.
    pub fn for_outbox(file: Option<PathBuf>, set: &[String]) -> Result<ForOutbox, Faults> {
        let mut keys = Keys::load(file, set)?;
        let read = ForOutbox {
            outbox: outbox::Config::read(&mut keys),
            event: event::Config::read(&mut keys),
            admin: admin::Config::read(&mut keys),
            sink: keys.read("sink", SinkKind::read),
            is_sink_set: keys.is_set("sink"),
            log: log::Config::read(&mut keys),
        };
        keys.check().map(|_| read)
    }

    /// Reads only where the private listener is, for who asks the running bridge.
    pub fn private_listener(file: Option<PathBuf>, set: &[String]) -> Result<SocketAddr, Faults> {
        let mut keys = Keys::load(file, set)?;
        let config = admin::Config::read(&mut keys);
        keys.check().map(|_| config.listen)
    }

    #[cfg(all(test, any(feature = "kafka", feature = "rabbitmq")))]
    pub(crate) fn of(set: &[String]) -> Result<Self, Faults> {
        Keys::of(set).and_then(|keys| Self::read(keys, |_, _| {}))
    }

    fn read(mut keys: Keys, look: impl Fn(&Self, &mut Keys)) -> Result<Self, Faults> {
        let settings = Self::sections(&mut keys);
        checks::together(&settings, &mut keys);
        look(&settings, &mut keys);
        let effective = keys.finish()?;
        Ok(Settings { effective, ..settings })
    }

    fn sections(keys: &mut Keys) -> Self {
        Settings {
            ingress: ingress::Config::read(keys),
            passthrough: passthrough::Config::read(keys),
            outbox: outbox::Config::read(keys),
            relay: relay::Config::read(keys),
            event: event::Config::read(keys),
            sink: sink::Config::read(keys),
            admin: admin::Config::read(keys),
            log: log::Config::read(keys),
            otlp: spans::Config::read(keys),
            worker_threads: keys.read("runtime.worker_threads", count(1024)),
            effective: Value::from(false), // until everything is read
            file: None,
            set: Vec::new(),
        }
    }

    /// Starts the log of this process.
    pub fn start_log(&self) -> Log {
        Log::start(&self.log)
    }

    /// What may well be a mistake, or is a risk that the operator takes; one line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        warnings::of(self)
    }

    /// Threads that serve HTTP.
    pub fn worker_threads(&self) -> usize {
        self.worker_threads
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            event: self.event.clone(),
            patience: self.relay.confirm_timeout,
            batch: self.relay.batch,
            max_body_bytes: self.ingress.max_body_bytes,
            outbox: self.outbox.path.clone(),
        }
    }

    /// The effective configuration, with every secret as `***`.
    pub(crate) fn effective_toml(&self) -> String {
        toml::to_string_pretty(&self.effective).expect("figment values are TOML values")
    }

    /// The same as JSON.
    pub(crate) fn effective_json(&self) -> String {
        serde_json::to_string_pretty(&self.effective).expect("figment values are JSON values")
    }
}

/// Every value that is not a section, by its key.
fn leaves(value: &Value) -> BTreeMap<String, String> {
    fn collect(value: &Value, at: &str, found: &mut BTreeMap<String, String>) {
        let Value::Dict(_, dict) = value else {
            let shown = serde_json::to_string(value).expect("figment values are JSON values");
            found.insert(at.to_owned(), shown);
            return;
        };
        for (key, value) in dict {
            let key = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            collect(value, &key, found);
        }
    }
    let mut found = BTreeMap::new();
    collect(value, "", &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_defaults_is_read_by_exactly_one_module() {
        let mut keys = Keys::defaults();
        Settings::sections(&mut keys);
        let mut known = keys.known().to_vec();
        known.sort();
        let twice: Vec<_> = known.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
        assert_eq!(keys.unknown(), [""; 0], "in config/default.toml, and read by nobody");
    }

    /// Where it has one at all, a key's default stands in the file that explains it.
    #[test]
    fn every_key_has_its_sentence() {
        let mut keys = Keys::defaults();
        Settings::sections(&mut keys);
        let text = include_str!("../config/default.toml");
        for key in keys.known() {
            let name = key.rsplit('.').next().unwrap();
            assert!(text.contains(name), "{key} is not in config/default.toml");
        }
    }
}
