//! `[[apps]]`: whose callbacks are accepted, and how they are authenticated.

use std::path::{Path, PathBuf};

use crate::config::value::{flag, secret_file, text, whole};
use crate::config::{Keys, Value, suggest};
use crate::secret::Secret;
use crate::signature::App;

const NO_APPS: &str = "no app is configured, so no callback could be accepted; write

    [[apps]]
    sdk_app_id = 1400000000      # the SDKAppID of your app, from the platform's console
    tokens = [\"…\"]               # its callback authentication token

  into the file named with --config (or allow_unsigned = true instead of tokens to try it on this host)";

const APP_KEYS: [&str; 4] = ["sdk_app_id", "tokens", "token_files", "allow_unsigned"];

/// An app as it is configured: its token files can change while the bridge runs.
#[derive(Debug, Clone)]
pub(crate) struct AppConfig {
    pub(crate) sdk_app_id: u64,
    tokens: Vec<Secret>,
    pub(super) token_files: Vec<PathBuf>,
    pub(crate) allow_unsigned: bool,
}

impl AppConfig {
    /// The app with its tokens, read from their files now. An error names the file.
    pub(super) fn load(&self) -> Result<App, String> {
        let mut tokens = self.tokens.clone();
        for path in &self.token_files {
            tokens.push(
                token_in(path).map_err(|reason| format!("app {}: {reason}", self.sdk_app_id))?,
            );
        }
        let AppConfig { sdk_app_id, allow_unsigned, .. } = *self;
        Ok(App { sdk_app_id, tokens, allow_unsigned })
    }
}

fn token_in(path: &Path) -> Result<Secret, String> {
    let text = secret_file(path)?;
    token(text).map_err(|reason| format!("{}: {reason}", path.display()))
}

/// The list of apps: tables in a file, or text of the same form in a variable.
pub(super) fn read(keys: &mut Keys) -> Vec<AppConfig> {
    let Some(value) = keys.take("apps") else {
        return Vec::new();
    };
    let (list, mut shown) = match list(&value) {
        Ok(list) => (list, Vec::new()),
        Err(reason) => {
            keys.fault("apps", &value, &reason);
            return Vec::new();
        }
    };
    let mut apps: Vec<AppConfig> = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let mut faults = Vec::new();
        let app = app(entry, &mut faults);
        if apps.iter().any(|other| other.sdk_app_id == app.sdk_app_id) {
            faults.push(("".into(), format!("sdk_app_id {} is set twice", app.sdk_app_id)));
        }
        for (key, reason) in faults {
            keys.fault(&format!("apps[{index}]{key}"), &value, &reason);
        }
        shown.push(masked(entry));
        apps.push(app);
    }
    if list.is_empty() {
        keys.reject(NO_APPS);
    }
    keys.show("apps", Value::from(shown));
    apps
}

fn list(value: &Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(_, list) => Ok(list.clone()),
        Value::String(_, text) => {
            let table = format!("list = {text}").parse::<toml::Table>().map_err(|error| {
                format!(
                    "is not a list in TOML's notation, as in \
                     [{{sdk_app_id=1400000000,tokens=[\"…\"]}}]: {}",
                    error.message()
                )
            })?;
            match Value::serialize(&table["list"]) {
                Ok(Value::Array(_, list)) => Ok(list),
                _ => Err("is not a list".into()),
            }
        }
        _ => Err("is not a list".into()),
    }
}

fn app(entry: &Value, faults: &mut Vec<(String, String)>) -> AppConfig {
    let (tokens, token_files) = (Vec::new(), Vec::new());
    let mut app = AppConfig { sdk_app_id: 0, tokens, token_files, allow_unsigned: false };
    let mut fault = |key: &str, reason: String| faults.push((format!(".{key}"), reason));

    match entry.find_ref("sdk_app_id").map(whole) {
        Some(Ok(id)) if i64::try_from(id).is_ok() => app.sdk_app_id = id,
        Some(Ok(id)) => fault("sdk_app_id", format!("{id} is larger than any SDKAppID")),
        Some(Err(reason)) => fault("sdk_app_id", reason),
        None => fault("sdk_app_id", "is missing".into()),
    }
    if let Some(value) = entry.find_ref("allow_unsigned") {
        flag(value)
            .map(|flag| app.allow_unsigned = flag)
            .unwrap_or_else(|r| fault("allow_unsigned", r));
    }
    for (key, is_file) in [("tokens", false), ("token_files", true)] {
        let Some(value) = entry.find_ref(key) else { continue };
        let Value::Array(_, items) = value else {
            fault(key, "is not a list".into());
            continue;
        };
        for item in items {
            let read = text(item).and_then(|text| match is_file {
                true => token_in(text.as_ref()).map(|_| app.token_files.push(text.into())),
                false => token(text.to_owned()).map(|token| app.tokens.push(token)),
            });
            if let Err(reason) = read {
                fault(key, reason);
            }
        }
    }
    let has_tokens = !app.tokens.is_empty() || !app.token_files.is_empty();
    if !has_tokens && !app.allow_unsigned && faults.is_empty() {
        faults.push((
            "".into(),
            "has no tokens, so no callback could be authentic; name tokens or token_files (or \
                      allow_unsigned = true)"
                .into(),
        ));
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
