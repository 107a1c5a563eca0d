//! `[kafka]`, `[rabbitmq]` and `[nats]`. All three are checked whichever is in use, so that a typing
//! error shows before the day the sink is changed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::{Dict, Value};
use percent_encoding::percent_decode_str;
use url::Url;

use super::Secret;
use super::apps::read_token;
use super::keys::Keys;
use super::value::{choice, count, file, filled, flag, positive_duration, text};
use crate::routing::Template;

/// A credential, or the file that it is read from whenever it is needed.
#[derive(Clone)]
pub(crate) enum Credential {
    Inline(Secret),
    File(PathBuf),
}

impl Credential {
    /// An error names the file.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        match self {
            Credential::Inline(secret) => Ok(secret.clone()),
            Credential::File(path) => read_token(path).map(Secret::new),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Credential::Inline(secret) => secret.fmt(formatter),
            Credential::File(path) => path.fmt(formatter),
        }
    }
}

/// Whom to trust, and how to prove who we are, in a TLS connection to a broker: PEM files.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientTls {
    /// Beside or instead of the public authorities, as the client library has it.
    pub(crate) ca: Option<PathBuf>,
    /// Certificate chain and key, shown to the broker.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Kafka {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) key: KafkaKey,
    /// Partitions and replication of the topic that is created if it is missing.
    pub(crate) create_topic: Option<(i32, i32)>,
    /// Handed to librdkafka as they are.
    pub(crate) properties: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum KafkaKey {
    GroupId,
    TopicId,
}

#[derive(Debug, Clone)]
pub(crate) struct Rabbitmq {
    /// May hold a username and a password; those beside it go before.
    pub(crate) url: Url,
    pub(crate) username: Option<Credential>,
    pub(crate) password: Option<Credential>,
    pub(crate) tls: ClientTls,
    pub(crate) exchange: String,
    pub(crate) routing_key: Template,
    pub(crate) declare: Declare,
    /// Of a quorum queue that gets everything.
    pub(crate) queue: Option<String>,
}

/// What the bridge does about exchange and queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Declare {
    /// Nothing: a missing exchange shows when an event is published.
    None,
    /// Looks whether they are there.
    Passive,
    /// Creates what is missing.
    Active,
}

#[derive(Debug, Clone)]
pub(crate) struct Nats {
    pub(crate) servers: Vec<Url>,
    pub(crate) username: Option<Credential>,
    pub(crate) password: Option<Credential>,
    pub(crate) token: Option<Credential>,
    /// A `.creds` file: JWT and seed.
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) tls: ClientTls,
    pub(crate) stream: String,
    pub(crate) subject: Template,
    pub(crate) create_stream: bool,
    pub(crate) replicas: usize,
    pub(crate) duplicate_window: Duration,
    pub(crate) max_age: Duration,
}

pub(super) fn kafka(keys: &mut Keys) -> Kafka {
    let create = keys.read("kafka.create_topic", flag);
    let partitions = keys.read("kafka.partitions", count);
    let replication = keys.read("kafka.replication", count);
    Kafka {
        brokers: keys.read("kafka.brokers", |value| list(value).map(|list| list.join(","))),
        topic: keys.read("kafka.topic", topic),
        key: keys.read("kafka.key", |value| {
            choice(value, &[("group_id", KafkaKey::GroupId), ("topic_id", KafkaKey::TopicId)])
        }),
        create_topic: create.then_some((partitions, replication)),
        properties: properties(keys),
    }
}

pub(super) fn rabbitmq(keys: &mut Keys) -> Rabbitmq {
    let url = keys.read("rabbitmq.url", |value| {
        let url = url(text(value)?, &["amqp", "amqps"])?;
        let vhost = url.path().strip_prefix('/').unwrap_or_default();
        if vhost.contains('/') {
            return Err("names a virtual host with a / in it: write that as %2f".into());
        }
        Ok(url)
    });
    keys.show("rabbitmq.url", Value::from(masked(&url)));
    let queue = keys.read("rabbitmq.queue", |value| short(text(value)?));
    Rabbitmq {
        username: credential(keys, "rabbitmq.username"),
        password: credential(keys, "rabbitmq.password"),
        tls: client_tls(keys, "rabbitmq.tls"),
        exchange: keys.read("rabbitmq.exchange", |value| short(&filled(value)?)),
        routing_key: keys.read("rabbitmq.routing_key", template),
        declare: keys.read("rabbitmq.declare", |value| {
            let choices = [
                ("none", Declare::None),
                ("passive", Declare::Passive),
                ("active", Declare::Active),
            ];
            choice(value, &choices)
        }),
        queue: (!queue.is_empty()).then_some(queue),
        url,
    }
}

pub(super) fn nats(keys: &mut Keys) -> Nats {
    let servers = keys.read("nats.servers", |value| {
        list(value)?.iter().map(|server| nats_server(server)).collect()
    });
    let servers: Vec<Url> = servers;
    keys.show("nats.servers", Value::from(servers.iter().map(masked).collect::<Vec<_>>()));
    // Left to itself the client would pass over credentials in a URL.
    let in_url = servers.iter().find(|server| !server.username().is_empty());
    let in_url = |part: fn(&Url) -> Option<&str>| {
        let text = percent_decode_str(part(in_url?)?).decode_utf8_lossy();
        Some(Credential::Inline(Secret::new(text)))
    };
    let nats = Nats {
        username: credential(keys, "nats.username").or_else(|| in_url(|url| Some(url.username()))),
        password: credential(keys, "nats.password").or_else(|| in_url(Url::password)),
        token: credential(keys, "nats.token"),
        credentials: keys.read_optional("nats.credentials_file", readable),
        tls: client_tls(keys, "nats.tls"),
        stream: keys.read("nats.stream", stream),
        subject: keys.read("nats.subject", template),
        create_stream: keys.read("nats.create_stream", flag),
        replicas: keys.read("nats.replicas", |value| match count(value)? {
            replicas @ 1..=5 => Ok(replicas),
            replicas => Err(format!("{replicas} is not from 1 to 5")),
        }),
        duplicate_window: keys.read("nats.duplicate_window", positive_duration),
        max_age: keys.read("nats.max_age", positive_duration),
        servers,
    };
    if nats.duplicate_window > nats.max_age {
        keys.faults.push("nats.duplicate_window: is longer than nats.max_age".into());
    }
    if nats.username.is_some() != nats.password.is_some() {
        keys.faults.push("nats: username and password go together".into());
    }
    nats
}

/// `key`, or `key_file` with the file that holds it, which has to be there.
fn credential(keys: &mut Keys, key: &str) -> Option<Credential> {
    let inline = keys.read_optional(key, |value| text(value).map(Secret::new));
    let named = keys.read_optional(&format!("{key}_file"), |value| {
        let path = file(value)?;
        read_token(&path).map(|_| path)
    });
    if inline.is_some() && !key.ends_with("username") {
        keys.show(key, Value::from("***"));
    }
    if inline.is_some() && named.is_some() {
        keys.faults.push(format!("{key}: stands there twice, also as {key}_file"));
    }
    inline.map(Credential::Inline).or(named.map(Credential::File))
}

fn client_tls(keys: &mut Keys, section: &str) -> ClientTls {
    let ca = keys.read_optional(&format!("{section}.ca_file"), readable);
    let cert = keys.read_optional(&format!("{section}.cert_file"), readable);
    let key = keys.read_optional(&format!("{section}.key_file"), readable);
    if cert.is_some() != key.is_some() {
        keys.faults.push(format!("{section}: cert_file and key_file go together"));
    }
    ClientTls { ca, identity: cert.zip(key) }
}

/// `[kafka.properties]`: names with dots, written with quotes or without, so they arrive as flat or
/// nested. Of a name that ends in `_file` the file's text is the value of the name without it.
fn properties(keys: &mut Keys) -> BTreeMap<String, Secret> {
    const SECTION: &str = "kafka.properties";
    keys.known.push(SECTION.into());
    let mut properties = BTreeMap::new();
    let Some(section) = keys.merged.find_ref(SECTION).cloned() else {
        return properties;
    };
    let Value::Dict(_, dict) = &section else {
        keys.fault(SECTION, &section, "is not a table");
        return properties;
    };
    let mut flat = Vec::new();
    flatten(dict, "", &mut flat);
    // A variable or a flag brings its name nested, and goes before a file's that has quotes.
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
            .ok_or("is no number that can be written")?,
        _ => return Err("is neither text, a number, nor true or false".into()),
    };
    match name.strip_suffix("_file") {
        Some(name) => Ok((name.to_owned(), read_token(text.as_ref())?)),
        None => Ok((name.to_owned(), text)),
    }
}

/// A list, or one text with commas.
fn list(value: &Value) -> Result<Vec<String>, String> {
    let list: Vec<String> = match value {
        Value::Array(_, items) => {
            items.iter().map(|item| text(item).map(str::to_owned)).collect::<Result<_, _>>()?
        }
        other => {
            let text = text(other)?.trim();
            let text = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
            text.split(',').map(|item| item.trim().trim_matches('"').to_owned()).collect()
        }
    };
    if list.is_empty() || list.iter().any(|item| item.trim().is_empty()) {
        return Err("names no server".into());
    }
    Ok(list)
}

/// Never quotes the text, in which a password may stand.
fn url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let text = text.trim();
    let text =
        if text.contains("://") { text.to_owned() } else { format!("{}://{text}", schemes[0]) };
    let url = Url::parse(&text).map_err(|error| {
        format!(
            "is no URL: {error} (in a password, what is not a letter or digit is written as %XX)"
        )
    })?;
    if !schemes.contains(&url.scheme()) {
        return Err(format!(
            "begins with {}://, expected one of {}",
            url.scheme(),
            schemes.join(", ")
        ));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".into());
    }
    Ok(url)
}

/// Without the credentials that may stand in it.
pub(crate) fn address_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn nats_server(text: &str) -> Result<Url, String> {
    let server = url(text, &["nats", "tls"])?;
    if !server.username().is_empty() && server.password().is_none() {
        return Err("has a token in it: write that as nats.token, or nats.token_file".into());
    }
    Ok(server)
}

fn masked(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        let _ = url.set_password(Some("***")); // fails only without a host
    }
    url.to_string()
}

fn template(value: &Value) -> Result<Template, String> {
    let text = filled(value)?;
    Template::parse(&text).map_err(|reason| format!("{text:?} {reason}"))
}

fn readable(value: &Value) -> Result<PathBuf, String> {
    let path = file(value)?;
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Kafka's rule for topic names.
fn topic(value: &Value) -> Result<String, String> {
    let name = filled(value)?;
    let is_legal = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
    if name.len() > 249 || !name.chars().all(is_legal) || name == "." || name == ".." {
        return Err(format!(
            "{name:?} is no name of a topic: up to 249 letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(name)
}

/// NATS' rule for stream names.
fn stream(value: &Value) -> Result<String, String> {
    let name = filled(value)?;
    let is_legal = |char: char| char.is_ascii_graphic() && !".*>/\\".contains(char);
    if name.len() > 255 || !name.chars().all(is_legal) {
        return Err(format!(
            "{name:?} is no name of a stream: no blanks, '.', '*', '>', '/' or '\\'"
        ));
    }
    Ok(name)
}

/// AMQP's short text.
fn short(text: &str) -> Result<String, String> {
    if text.len() > 255 {
        return Err(format!("is {} bytes long, at most 255 are possible", text.len()));
    }
    Ok(text.to_owned())
}
