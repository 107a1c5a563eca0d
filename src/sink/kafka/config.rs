//! `[kafka]`.

use std::collections::BTreeMap;

use crate::config::value::{choice, count, filled, flag, secret_file, servers};
use crate::config::{Dict, Keys, Value};
use crate::secret::Secret;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) key: Key,
    /// Partitions and replication factor for creating a missing topic.
    pub(crate) create_topic: Option<(i32, i32)>,
    /// Passed on to librdkafka unchanged.
    pub(crate) properties: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Key {
    GroupId,
    TopicId,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        let create = keys.read("kafka.create_topic", flag);
        let partitions = keys.read("kafka.partitions", count(100_000));
        let replication = keys.read("kafka.replication", count(100));
        Config {
            brokers: keys
                .read("kafka.brokers", |value| servers(value).map(|servers| servers.join(","))),
            topic: keys.read("kafka.topic", topic),
            key: keys.read("kafka.key", |value| {
                choice(value, &[("group_id", Key::GroupId), ("topic_id", Key::TopicId)])
            }),
            create_topic: create.then_some((partitions, replication)),
            properties: properties(keys),
        }
    }
}

/// `[kafka.properties]`: dotted names, quoted or not, so they arrive either flat or nested. For a name
/// that ends in `_file`, the file's text is the value of the name without it.
fn properties(keys: &mut Keys) -> BTreeMap<String, Secret> {
    const SECTION: &str = "kafka.properties";
    let mut properties = BTreeMap::new();
    let Some(section) = keys.take(SECTION) else {
        return properties;
    };
    let Value::Dict(_, dict) = &section else {
        keys.fault(SECTION, &section, "is not a table");
        return properties;
    };
    let mut flat = Vec::new();
    flatten(dict, "", &mut flat);
    // A name from a variable or a flag arrives nested, and takes precedence over a quoted one from the
    // file.
    flat.sort_by_key(|(name, _)| dict.contains_key(name.as_str()).then_some(0).or(Some(1)));
    let mut shown = Dict::new();
    for (name, value) in flat {
        match property(&name, &value) {
            Ok((name, text)) => {
                let is_secret = ["password", "secret", ".key", ".pem", "jaas"];
                let is_secret = is_secret.iter().any(|part| name.contains(part))
                    && !name.ends_with(".location");
                let seen = if is_secret { "***" } else { &text };
                shown.insert(name.clone(), Value::from(seen.to_owned()));
                properties.insert(name, Secret::new(text));
            }
            Err(reason) => keys.fault(&format!("{SECTION}.{name}"), &value, &reason),
        }
    }
    keys.show(SECTION, Value::from(shown));
    properties
}

fn flatten(dict: &Dict, at: &str, flat: &mut Vec<(String, Value)>) {
    for (key, value) in dict {
        let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match value {
            Value::Dict(_, dict) => flatten(dict, &name, flat),
            value => flat.push((name, value.clone())),
        }
    }
}

fn property(name: &str, value: &Value) -> Result<(String, String), String> {
    let text = match value {
        Value::String(_, text) => text.clone(),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => number
            .to_i128()
            .map(|whole| whole.to_string())
            .or_else(|| number.to_u128().map(|whole| whole.to_string()))
            .or_else(|| number.to_f64().map(|float| float.to_string()))
            .ok_or("is a number that cannot be written as text")?,
        _ => return Err("is neither text, a number, nor true or false".into()),
    };
    match name.strip_suffix("_file") {
        Some(name) => Ok((name.to_owned(), secret_file(text.as_ref())?)),
        None => Ok((name.to_owned(), text)),
    }
}

/// Kafka's rule for topic names.
fn topic(value: &Value) -> Result<String, String> {
    let name = filled(value)?;
    let is_legal = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
    if name.len() > 249 || !name.chars().all(is_legal) || name == "." || name == ".." {
        return Err(format!(
            "{name:?} is not a name for a topic: up to 249 letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(name)
}
