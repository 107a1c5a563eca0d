//! Reading the merged layers key by key: which keys there are, what is wrong with them and where it
//! came from, and what the configuration comes to.

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};

use super::{DEFAULTS, Faults};

/// Reads keys one by one, remembers which there are, and collects what is wrong with them.
pub(super) struct Keys {
    figment: Figment,
    pub(super) merged: Value,
    defaults: Value,
    pub(super) known: Vec<String>,
    effective: Dict,
    pub(super) faults: Vec<String>,
}

impl Keys {
    pub(super) fn new(figment: Figment) -> Result<Self, Faults> {
        let defaults = Figment::from(Toml::string(DEFAULTS))
            .extract()
            .expect("config/default.toml is TOML: a test reads it");
        let merged = figment
            .extract()
            .map_err(|error| Faults(error.into_iter().map(|fault| fault.to_string()).collect()))?;
        let (known, effective, faults) = (Vec::new(), Dict::new(), Vec::new());
        Ok(Keys { figment, merged, defaults, known, effective, faults })
    }

    /// A key that has a default. On a fault, which is kept for later, it is the default's value.
    pub(super) fn read<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
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

    /// A key that has none. A fault is kept for later, and reads as absence.
    pub(super) fn read_optional<T>(
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
        self.known.push(key.to_owned());
        let value = self.merged.find_ref(key)?.clone();
        match parse(&value) {
            Ok(parsed) => Some((value, parsed)),
            Err(reason) => {
                self.fault(key, &value, &reason);
                None
            }
        }
    }

    pub(super) fn fault(&mut self, key: &str, value: &Value, reason: &str) {
        self.faults.push(format!("{key}{}: {reason}", self.origin(value)));
    }

    /// Where a value came from, in brackets; nothing for a default.
    fn origin(&self, value: &Value) -> String {
        let Some(metadata) = self.figment.get_metadata(value.tag()) else {
            return String::new();
        };
        match &metadata.source {
            Some(figment::Source::File(path)) => format!(" ({})", path.display()),
            _ if metadata.name.starts_with("TOML") => String::new(),
            _ => format!(" ({})", metadata.name),
        }
    }

    pub(super) fn show(&mut self, key: &str, value: Value) {
        let nested = figment::util::nest(key, value).into_dict().unwrap_or_default();
        merge(&mut self.effective, nested);
    }

    /// The effective configuration, or everything that is wrong.
    pub(super) fn finish(mut self) -> Result<Value, Faults> {
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
        if self.faults.is_empty() {
            Ok(Value::from(self.effective))
        } else {
            Err(Faults(self.faults))
        }
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

/// `unknown key`, with the nearest known one where there is a near one.
pub(super) fn suggest<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let nearest = known
        .map(|known| {
            let whole = strsim::damerau_levenshtein(key, known);
            // A key in the wrong section, or with none, is as near as its own name is.
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

/// A value that came as text, shown in the type that the default has.
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
