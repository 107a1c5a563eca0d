//! Reading the merged layers key by key: which keys exist, what is wrong with them and where they came
//! from, and the effective configuration.

use std::path::PathBuf;

use figment::Figment;
use figment::value::{Dict, Value};

use super::Faults;
use super::layers::{self, defaults};

/// Reads keys one by one, remembers which ones exist, and collects what is wrong with them.
pub(crate) struct Keys {
    figment: Figment,
    merged: Value,
    defaults: Value,
    known: Vec<String>,
    effective: Dict,
    faults: Vec<String>,
    /// The keys that these are about.
    faulty: Vec<String>,
}

impl Keys {
    /// Merges the layers: the defaults, `file` (or the one that `TOPIC_BRIDGE_CONFIG` names), the
    /// environment, and `set`, which holds `section.key=value` texts.
    pub(crate) fn load(file: Option<PathBuf>, set: &[String]) -> Result<Self, Faults> {
        layers::layer(file, std::env::vars_os(), set).and_then(Self::new)
    }

    /// The defaults and `set` only: the environment of a test may name real brokers.
    #[cfg(test)]
    pub(crate) fn of(set: &[String]) -> Result<Self, Faults> {
        layers::layer(None, std::iter::empty(), set).and_then(Self::new)
    }

    #[cfg(test)]
    pub(crate) fn defaults() -> Self {
        Self::of(&[]).unwrap()
    }

    fn new(figment: Figment) -> Result<Self, Faults> {
        let defaults = Figment::from(defaults())
            .extract()
            .expect("config/default.toml is TOML: a test reads it");
        let merged = figment
            .extract()
            .map_err(|error| Faults(error.into_iter().map(|fault| fault.to_string()).collect()))?;
        let (known, effective) = (Vec::new(), Dict::new());
        let (faults, faulty) = (Vec::new(), Vec::new());
        Ok(Keys { figment, merged, defaults, known, effective, faults, faulty })
    }

    /// Reads a key that has a default. On a fault, which is recorded, returns the default.
    pub(crate) fn read<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
        let default =
            self.defaults.find_ref(key).cloned().expect("every key read here has a default");
        let parsed_default = || parse(&default).expect("config/default.toml passes its own check");
        match self.read_value(key, &parse) {
            Some((value, parsed)) => {
                self.show(key, like(&default, value));
                parsed
            }
            None => parsed_default(),
        }
    }

    /// Reads a key without a default. A fault is recorded, and counts as absence.
    pub(crate) fn read_optional<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let (value, parsed) = self.read_value(key, &parse)?;
        self.show(key, value);
        Some(parsed)
    }

    fn read_value<T>(
        &mut self,
        key: &str,
        parse: &impl Fn(&Value) -> Result<T, String>,
    ) -> Option<(Value, T)> {
        let value = self.take(key)?;
        match parse(&value) {
            Ok(parsed) => Some((value, parsed)),
            Err(reason) => {
                self.fault(key, &value, &reason);
                None
            }
        }
    }

    /// Takes a key whose reader does everything else itself.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.to_owned());
        self.merged.find_ref(key).cloned()
    }

    /// Skips a section that is not read in this build.
    pub(crate) fn skip(&mut self, section: &str) {
        self.known.push(section.to_owned());
    }

    /// Records that something is wrong with a value.
    pub(crate) fn fault(&mut self, key: &str, value: &Value, reason: &str) {
        self.faults.push(format!("{key}{}: {reason}", self.origin(value)));
        self.faulty.push(key.to_owned());
    }

    /// Whether the values of these keys are the configured ones, and not defaults in place of faulty ones.
    pub(crate) fn are_sound(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|key| self.faulty.iter().any(|faulty| faulty == key))
    }

    /// Whether somebody has set this key: not a default.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        let metadata =
            self.merged.find_ref(key).and_then(|value| self.figment.get_metadata(value.tag()));
        metadata.is_some_and(|metadata| metadata.name != layers::DEFAULTS_NAME)
    }

    /// Records that something is wrong with a value that was read before, with its origin.
    pub(crate) fn refuse(&mut self, key: &str, reason: &str) {
        let value = self.merged.find_ref(key).cloned().unwrap_or_else(|| Value::from(""));
        self.fault(key, &value, reason);
    }

    /// Records that values contradict each other.
    pub(crate) fn reject(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    /// Where a value came from, in brackets; nothing for a default.
    fn origin(&self, value: &Value) -> String {
        let Some(metadata) = self.figment.get_metadata(value.tag()) else {
            return String::new();
        };
        match &metadata.source {
            Some(figment::Source::File(path)) => format!(" ({})", path.display()),
            _ if metadata.name == layers::DEFAULTS_NAME => String::new(),
            _ => format!(" ({})", metadata.name),
        }
    }

    /// Sets the value that the effective configuration shows for this key.
    pub(crate) fn show(&mut self, key: &str, value: Value) {
        let nested = figment::util::nest(key, value).into_dict().unwrap_or_default();
        merge(&mut self.effective, nested);
    }

    #[cfg(test)]
    pub(crate) fn known(&self) -> &[String] {
        &self.known
    }

    #[cfg(test)]
    pub(crate) fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        unknown_keys(&self.merged, "", &self.known, &mut unknown);
        unknown.into_iter().map(|(key, _)| key).collect()
    }

    /// The effective configuration, or everything that is wrong.
    pub(crate) fn finish(mut self) -> Result<Value, Faults> {
        let mut unknown = Vec::new();
        unknown_keys(&self.merged, "", &self.known, &mut unknown);
        for (key, value) in unknown {
            let is_section = self.known.iter().any(|known| known.starts_with(&format!("{key}.")));
            let reason = if is_section {
                "is a section, not a value".to_owned()
            } else {
                suggest(&key, self.known.iter().map(String::as_str))
            };
            self.fault(&key, &value, &reason);
        }
        self.check().map(Value::from)
    }

    /// What has been read so far, or what is wrong with it.
    pub(crate) fn check(self) -> Result<Dict, Faults> {
        if self.faults.is_empty() { Ok(self.effective) } else { Err(Faults(self.faults)) }
    }
}

fn merge(into: &mut Dict, from: Dict) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Dict(_, into)), Value::Dict(_, from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn unknown_keys(value: &Value, at: &str, known: &[String], unknown: &mut Vec<(String, Value)>) {
    let Value::Dict(_, dict) = value else {
        unknown.push((at.to_owned(), value.clone()));
        return;
    };
    for (key, value) in dict {
        let key = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        if !known.contains(&key) {
            unknown_keys(value, &key, known, unknown);
        }
    }
}

/// `unknown key`, with the most similar known one, if any is similar enough.
pub(crate) fn suggest<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let nearest = known
        .map(|known| {
            let whole = strsim::damerau_levenshtein(key, known);
            // A key in the wrong section, or without one, is as similar as its own name is.
            let name = strsim::damerau_levenshtein(own_name(key), own_name(known));
            (whole.min(name + 1), known)
        })
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, known)) if distance <= 1 + key.len() / 3 => {
            format!("unknown key, did you mean {known}?")
        }
        _ => "unknown key".into(),
    }
}

/// A key without its section.
fn own_name(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// Converts a value that came as text to the type of the default.
fn like(default: &Value, value: Value) -> Value {
    let Some(text) = value.as_str() else {
        return value;
    };
    match default {
        Value::Num(..) => text.trim().parse::<i64>().map(Value::from).unwrap_or(value),
        Value::Bool(..) => text.trim().parse::<bool>().map(Value::from).unwrap_or(value),
        _ => value,
    }
}
