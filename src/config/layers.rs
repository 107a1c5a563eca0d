//! The layers of the configuration, from the embedded defaults up to the flags. Values that arrive as
//! text stay text here: only a key's own reader knows their type.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::{DEFAULTS, Faults};

/// The origin that is shown for a default.
pub(super) const DEFAULTS_NAME: &str = "the defaults";

const PREFIX: &str = "TOPIC_BRIDGE_";
const FILE_VARIABLE: &str = "TOPIC_BRIDGE_CONFIG";

/// Merges the layers. `variables` is the environment, `set` holds `section.key=value` texts.
pub(super) fn layer(
    file: Option<PathBuf>,
    variables: impl Iterator<Item = (OsString, OsString)>,
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
            named_file = named_file.or_else(|| (!value.is_empty()).then(|| PathBuf::from(value)));
        } else if !is_service_link(&name[PREFIX.len()..], value) {
            let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            if names_nothing(&key) {
                faults.push(format!("{name}: names no key: write it as {PREFIX}SECTION__KEY"));
            } else {
                texts.push(Text { origin: name.to_owned(), key, value: value.to_owned() });
            }
        }
    }
    for (text, number) in set.iter().zip(1..) {
        // A text that is not as it should be may be anything, even a secret: it is not shown.
        let mut wrong = |what| {
            let nth = ordinal(number);
            faults.push(format!("the {nth} --set {what}: write it as section.key=value"));
        };
        match text.split_once('=') {
            None => wrong("has no ="),
            Some((key, _)) if names_nothing(key) => wrong("names no key"),
            Some((key, value)) => texts.push(Text {
                origin: "--set".into(),
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
            }),
        }
    }

    let mut figment = Figment::from(defaults());
    if let Some(path) = named_file {
        match read_file(&path) {
            Ok(table) => figment = figment.merge(table),
            Err(fault) => faults.push(fault),
        }
    }
    for text in texts {
        figment = figment.merge(text);
    }
    if faults.is_empty() { Ok(figment) } else { Err(Faults(faults)) }
}

/// Whether a key, or a part of it between two dots, is empty: it would be skipped without a word.
fn names_nothing(key: &str) -> bool {
    key.split('.').any(|part| part.trim().is_empty())
}

fn ordinal(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// For each service, Kubernetes sets `NAME_SERVICE_HOST`, `NAME_PORT=tcp://…`, `NAME_PORT_80_TCP_ADDR`
/// and the like in every container: a service called topic-bridge or topic-bridge-admin must not look
/// like a configuration fault.
fn is_service_link(rest: &str, value: &str) -> bool {
    let ends = |end: &str| rest.strip_suffix(end).is_some_and(|s| s.is_empty() || s.ends_with('_'));
    let names_protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains(protocol));
    ends("SERVICE_HOST")
        || ends("SERVICE_PORT")
        || rest.contains("SERVICE_PORT_")
        || (ends("PORT") && value.contains("://"))
        || (rest.contains("PORT_") && names_protocol)
}

pub(super) fn defaults() -> Toml {
    let table = DEFAULTS.parse().expect("config/default.toml is TOML: a test reads it");
    Toml { metadata: Metadata::named(DEFAULTS_NAME), table }
}

/// An error names the line without quoting it: it may contain a secret.
fn read_file(path: &Path) -> Result<Toml, String> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("{shown}: there is no such configuration file"));
        }
        Err(error) => return Err(format!("{shown}: cannot be read: {error}")),
    };
    let table = text.parse::<toml::Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("{shown}: line {line} is not TOML: {}", error.message())
    })?;
    Ok(Toml { metadata: Metadata::from("TOML file", path), table })
}

/// A whole TOML file.
pub(super) struct Toml {
    metadata: Metadata,
    table: toml::Table,
}

impl Provider for Toml {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let dict = Value::serialize(&self.table)?.into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// One value that arrives as text, from a variable or a flag. It stays text until its key's reader parses
/// it, so a token made of digits keeps its zeros.
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
