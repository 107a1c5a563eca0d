//! The configuration: layers (embedded defaults, the user's file, environment, flags) → raw values →
//! a checked [`Config`]. Nothing else reads the environment. All faults are reported at once, each
//! with the place that it came from; a secret is never shown.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::event::{APP_PLACEHOLDER, Naming};
use crate::signature::App;

const DEFAULTS: &str = include_str!("../config/default.toml");
const PREFIX: &str = "TOPIC_BRIDGE_";
const FILE_VARIABLE: &str = "TOPIC_BRIDGE_CONFIG";

const NO_APPS: &str = "no app is configured, so nobody's callbacks could be taken; write

    [[apps]]
    sdk_app_id = 1400000000      # the SDKAppID of your app, from the platform's console
    tokens = [\"…\"]               # its callback authentication token

  into the file named with --config (or allow_unsigned = true instead of tokens for a try on this host)";

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
    pub(crate) admin: Admin,
    pub(crate) log: Log,
    worker_threads: usize,
    effective: Value,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum SinkKind {
    Embedded,
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
    pub(crate) quarantine_events: u64,
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

impl Config {
    /// Reads the file (or the one that `TOPIC_BRIDGE_CONFIG` names), the environment, and `set`,
    /// which holds `section.key=value` texts.
    pub fn load(file: Option<PathBuf>, set: &[String]) -> Result<Self, Faults> {
        Self::layer(file, std::env::vars_os(), set).and_then(Self::check)
    }

    /// Only where the outbox is, for commands that need no more: whatever else is wrong or missing
    /// shall not keep an operator from looking.
    pub fn outbox_path(file: Option<PathBuf>, set: &[String]) -> Result<PathBuf, Faults> {
        let mut keys = Keys::new(Self::layer(file, std::env::vars_os(), set)?)?;
        let path = keys.read("outbox.path", self::file);
        if keys.faults.is_empty() { Ok(path) } else { Err(Faults(keys.faults)) }
    }

    /// Threads that serve HTTP.
    pub fn worker_threads(&self) -> usize {
        self.worker_threads
    }

    fn layer(
        file: Option<PathBuf>,
        variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
        set: &[String],
    ) -> Result<Figment, Faults> {
        let mut faults = Vec::new();
        let mut named_file = file;
        let mut texts = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let Some(value) = value.to_str() else {
                faults.push(format!("{name}: the variable is not UTF-8"));
                continue;
            };
            if name == FILE_VARIABLE {
                named_file = named_file.or_else(|| Some(PathBuf::from(value)));
            } else if !is_service_link(&name[PREFIX.len()..], value) {
                let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
                texts.push(Text { origin: name.to_owned(), key, value: value.to_owned() });
            }
        }
        for text in set {
            match text.split_once('=') {
                Some((key, value)) => texts.push(Text {
                    origin: "--set".into(),
                    key: key.trim().to_owned(),
                    value: value.trim().to_owned(),
                }),
                None => faults.push(format!("--set {text}: write it as section.key=value")),
            }
        }

        let mut figment = Figment::from(Toml::string(DEFAULTS));
        if let Some(path) = named_file {
            match parse_file(&path) {
                Ok(()) => figment = figment.merge(Toml::file_exact(&path)),
                Err(fault) => faults.push(fault),
            }
        }
        for text in texts {
            figment = figment.merge(text);
        }
        if faults.is_empty() { Ok(figment) } else { Err(Faults(faults)) }
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
        let outbox = Outbox {
            path: keys.read("outbox.path", file),
            sync: keys.read("outbox.sync", |value| {
                choice(value, &[("full", Sync::Full), ("normal", Sync::Normal), ("off", Sync::Off)])
            }),
            max_bytes: keys.read("outbox.max_bytes", size),
            dedupe_window: keys.read("outbox.dedupe_window", duration),
            history: keys.read("outbox.history", duration),
            history_events: keys.read("outbox.history_events", count),
            quarantine_events: keys.read("outbox.quarantine_events", count),
        };
        let relay = Relay {
            batch: keys.read("relay.batch", count),
            retry_min: keys.read("relay.retry_min", positive_duration),
            retry_max: keys.read("relay.retry_max", positive_duration),
            drain_timeout: keys.read("relay.drain_timeout", duration),
        };
        if relay.retry_min > relay.retry_max {
            keys.faults.push("relay.retry_min: is longer than relay.retry_max".into());
        }
        keys.read("event.encoding", |value| choice(value, &[("structured", ())]));
        let config = Config {
            sink: keys.read("sink", |value| choice(value, &[("embedded", SinkKind::Embedded)])),
            apps,
            ingress,
            outbox,
            relay,
            naming: Naming {
                event_type: keys.read("event.type", filled),
                source: keys.read("event.source", source),
            },
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

/// Kubernetes puts `NAME_SERVICE_HOST`, `NAME_PORT=tcp://…`, `NAME_PORT_80_TCP_ADDR` and the like, for
/// each service, into every container: a service called topic-bridge, or topic-bridge-admin, must not
/// look like a configuration fault.
fn is_service_link(rest: &str, value: &str) -> bool {
    let ends = |end: &str| rest.strip_suffix(end).is_some_and(|s| s.is_empty() || s.ends_with('_'));
    let names_protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains(protocol));
    ends("SERVICE_HOST")
        || ends("SERVICE_PORT")
        || rest.contains("SERVICE_PORT_")
        || (ends("PORT") && value.contains("://"))
        || (rest.contains("PORT_") && names_protocol)
}

/// The file parsed beforehand, for a fault's own text quotes the line, in which a secret may stand.
fn parse_file(path: &std::path::Path) -> Result<(), String> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("{shown}: there is no such configuration file"));
        }
        Err(error) => return Err(format!("{shown}: cannot be read: {error}")),
    };
    text.parse::<toml::Table>().map(|_| ()).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("{shown}: line {line} is not TOML: {}", error.message())
    })
}

/// One value that arrives as text, from a variable or a flag. It stays text until the key's own
/// reader takes it, so a token of digits keeps its zeros.
struct Text {
    origin: String,
    key: String,
    value: String,
}

impl Provider for Text {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, Value::from(self.value.clone()));
        let dict = nested.into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// Reads keys one by one, remembers which there are, and collects what is wrong with them.
struct Keys {
    figment: Figment,
    merged: Value,
    defaults: Value,
    known: Vec<String>,
    effective: Dict,
    faults: Vec<String>,
}

impl Keys {
    fn new(figment: Figment) -> Result<Self, Faults> {
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
    fn read<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
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
    fn read_optional<T>(
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

    fn fault(&mut self, key: &str, value: &Value, reason: &str) {
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

    fn show(&mut self, key: &str, value: Value) {
        let nested = figment::util::nest(key, value).into_dict().unwrap_or_default();
        merge(&mut self.effective, nested);
    }

    /// The effective configuration, or everything that is wrong.
    fn finish(mut self) -> Result<Value, Faults> {
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
fn suggest<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let last = |key: &'k str| key.rsplit('.').next().unwrap_or(key);
    let nearest = known
        .map(|known| {
            let whole = strsim::damerau_levenshtein(key, known);
            // A key in the wrong section, or with none, is as near as its own name is.
            let name =
                strsim::damerau_levenshtein(key.rsplit('.').next().unwrap_or(key), last(known));
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

/// Text as such. A number or a flag is refused, for it may have lost zeros on the way.
fn text(value: &Value) -> Result<&str, String> {
    let found = match value {
        Value::String(_, text) => return Ok(text),
        Value::Num(..) => "a number",
        Value::Bool(..) => "true or false",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        _ => "something else",
    };
    Err(format!("found {found}, expected text: put it in quotes"))
}

fn filled(value: &Value) -> Result<String, String> {
    match text(value)? {
        "" => Err("is empty".into()),
        text => Ok(text.to_owned()),
    }
}

fn file(value: &Value) -> Result<PathBuf, String> {
    filled(value).map(PathBuf::from)
}

fn flag(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(_, flag) => Ok(*flag),
        other => choice(other, &[("true", true), ("false", false)]),
    }
}

fn choice<T: Clone>(value: &Value, choices: &[(&str, T)]) -> Result<T, String> {
    let text = text(value)?;
    let found = choices.iter().find(|(name, _)| *name == text.trim());
    found.map(|(_, choice)| choice.clone()).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("{text:?} is not one of {}", names.join(", "))
    })
}

fn whole(value: &Value) -> Result<u64, String> {
    let number = match value {
        // figment keeps the sign in the type, so one of the two is always nothing.
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(unsigned), _) => u64::try_from(unsigned).ok(),
            (_, Some(signed)) => u64::try_from(signed).ok(),
            _ => None,
        },
        other => text(other)?.trim().parse().ok(),
    };
    number.ok_or_else(|| "is not a whole number of 0 or more".into())
}

/// A whole number from 1 to a billion: a limit of nothing would stop everything.
fn count<T: TryFrom<u64>>(value: &Value) -> Result<T, String> {
    let number = whole(value)?;
    let in_range =
        (1..=1_000_000_000).contains(&number).then(|| T::try_from(number).ok()).flatten();
    in_range.ok_or_else(|| format!("{number} is not from 1 to 1000000000"))
}

fn duration(value: &Value) -> Result<Duration, String> {
    let unit = |found: &str| {
        format!("{found:?} is no duration: write a unit, as in \"1500ms\" or \"10m\"")
    };
    match value {
        Value::Num(_, number) => Err(unit(&number.to_i128().unwrap_or_default().to_string())),
        other => {
            let text = text(other)?.trim();
            humantime::parse_duration(text).map_err(|_| unit(text))
        }
    }
}

fn positive_duration(value: &Value) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => Err("must be longer than nothing".into()),
        duration => Ok(duration),
    }
}

fn whole_seconds(value: &Value) -> Result<u64, String> {
    let duration = duration(value)?;
    if duration.subsec_nanos() != 0 {
        return Err("must be whole seconds, as RequestTime is".into());
    }
    Ok(duration.as_secs())
}

/// A positive size; a bare number is bytes.
fn size(value: &Value) -> Result<u64, String> {
    let bytes = match value {
        Value::Num(..) => whole(value)?,
        other => {
            let text = text(other)?.trim();
            let parsed: Result<bytesize::ByteSize, _> = text.parse();
            parsed
                .map_err(|_| format!("{text:?} is no size: write it as \"64 KiB\" or \"1 GiB\""))?
                .as_u64()
        }
    };
    if bytes == 0 { Err("must be more than nothing".into()) } else { Ok(bytes) }
}

fn address(value: &Value) -> Result<SocketAddr, String> {
    let text = text(value)?.trim();
    let resolved = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    resolved.ok_or_else(|| format!("{text:?} is no address: write it as \"127.0.0.1:8080\""))
}

fn path(value: &Value) -> Result<String, String> {
    let path = text(value)?.trim();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#{}*".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(is_plain) {
        return Err(format!(
            "{path:?} is no plain URL path: it starts with / and has no ?, #, {{, }} or *"
        ));
    }
    Ok(path.to_owned())
}

fn source(value: &Value) -> Result<String, String> {
    let source = filled(value)?;
    if source.replace(APP_PLACEHOLDER, "").contains(['{', '}']) {
        return Err(format!("{source:?} has a placeholder other than {APP_PLACEHOLDER}"));
    }
    Ok(source)
}

fn level(value: &Value) -> Result<tracing::level_filters::LevelFilter, String> {
    use tracing::level_filters::LevelFilter as L;
    choice(
        value,
        &[
            ("error", L::ERROR),
            ("warn", L::WARN),
            ("info", L::INFO),
            ("debug", L::DEBUG),
            ("trace", L::TRACE),
        ],
    )
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

const APP_KEYS: [&str; 4] = ["sdk_app_id", "tokens", "token_files", "allow_unsigned"];

/// The list of apps: tables in a file, or one text of the same form in a variable.
fn apps(keys: &mut Keys) -> Vec<App> {
    keys.known.push("apps".into());
    let Some(value) = keys.merged.find_ref("apps").cloned() else {
        return Vec::new();
    };
    let (list, mut shown) = match list(&value) {
        Ok(list) => (list, Vec::new()),
        Err(reason) => {
            keys.fault("apps", &value, &reason);
            return Vec::new();
        }
    };
    let mut apps: Vec<App> = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let mut faults = Vec::new();
        let app = app(entry, &mut faults);
        if apps.iter().any(|other| other.sdk_app_id == app.sdk_app_id) {
            faults.push(("".into(), format!("sdk_app_id {} stands there twice", app.sdk_app_id)));
        }
        for (key, reason) in faults {
            keys.fault(&format!("apps[{index}]{key}"), &value, &reason);
        }
        shown.push(masked(entry));
        apps.push(app);
    }
    if list.is_empty() {
        keys.faults.push(NO_APPS.to_owned());
    }
    keys.show("apps", Value::from(shown));
    apps
}

fn list(value: &Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(_, list) => Ok(list.clone()),
        Value::String(_, text) => {
            let table = format!("list = {text}").parse::<toml::Table>().map_err(|error| {
                format!("is no list in TOML's notation, as in [{{sdk_app_id=1400000000,tokens=[\"…\"]}}]: {}", error.message())
            })?;
            match Value::serialize(&table["list"]) {
                Ok(Value::Array(_, list)) => Ok(list),
                _ => Err("is not a list".into()),
            }
        }
        _ => Err("is not a list".into()),
    }
}

fn app(entry: &Value, faults: &mut Vec<(String, String)>) -> App {
    let read = |key: &str| entry.find_ref(key).cloned().map(|value| (key.to_owned(), value));
    let mut app = App { sdk_app_id: 0, tokens: Vec::new(), allow_unsigned: false };
    let mut fault = |key: &str, reason: String| faults.push((format!(".{key}"), reason));

    match read("sdk_app_id").map(|(_, value)| whole(&value)) {
        Some(Ok(id)) if i64::try_from(id).is_ok() => app.sdk_app_id = id,
        Some(Ok(id)) => fault("sdk_app_id", format!("{id} is larger than any SDKAppID")),
        Some(Err(reason)) => fault("sdk_app_id", reason),
        None => fault("sdk_app_id", "is missing".into()),
    }
    if let Some((_, value)) = read("allow_unsigned") {
        flag(&value)
            .map(|flag| app.allow_unsigned = flag)
            .unwrap_or_else(|r| fault("allow_unsigned", r));
    }
    for (key, is_file) in [("tokens", false), ("token_files", true)] {
        let Some((_, value)) = read(key) else { continue };
        let Value::Array(_, items) = value else {
            fault(key, "is not a list".into());
            continue;
        };
        for item in &items {
            match text(item)
                .and_then(|text| if is_file { read_token(text) } else { Ok(text.to_owned()) })
                .and_then(token)
            {
                Ok(token) => app.tokens.push(token),
                Err(reason) => fault(key, reason),
            }
        }
    }
    if app.tokens.is_empty() && !app.allow_unsigned && faults.is_empty() {
        faults.push(("".into(), "has no tokens, so no callback could be authentic; name tokens or token_files (or allow_unsigned = true)".into()));
    }
    match entry {
        Value::Dict(_, dict) => {
            for key in dict.keys().filter(|key| !APP_KEYS.contains(&key.as_str())) {
                faults.push((format!(".{key}"), suggest(key, APP_KEYS.into_iter())));
            }
        }
        _ => faults.push(("".into(), "is not a table".into())),
    }
    app
}

/// A secret file's text, without the line break that editors leave at its end.
fn read_token(path: &str) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(format!("cannot read {path}: {error}")),
    }
}

/// The platform's tokens have 1 to 128 characters.
fn token(text: String) -> Result<Secret, String> {
    match text.chars().count() {
        1..=128 => Ok(Secret::new(text)),
        length => Err(format!("a token has 1 to 128 characters, this one has {length}")),
    }
}

fn masked(app: &Value) -> Value {
    let mut app = app.clone();
    if let Value::Dict(_, dict) = &mut app
        && let Some(Value::Array(_, tokens)) = dict.get_mut("tokens")
    {
        tokens.fill(Value::from("***"));
    }
    app
}
