//! `[nats]`.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use super::super::access::{ClientTls, Credential, client_tls, credential, masked, template, url};
use crate::config::value::{CENTURY, count, filled, flag, positive_duration, readable, servers};
use crate::config::{Keys, Value};
use crate::routing::Template;
use crate::secret::Secret;

#[derive(Debug, Clone)]
pub(crate) struct Config {
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

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        let servers = keys.read("nats.servers", |value| {
            servers(value)?.iter().map(|server| nats_server(server)).collect()
        });
        let servers: Vec<Url> = servers;
        keys.show("nats.servers", Value::from(servers.iter().map(masked).collect::<Vec<_>>()));
        // By default the client would ignore credentials in a URL.
        let in_url = servers.iter().find(|server| !server.username().is_empty());
        let in_url = |part: fn(&Url) -> Option<&str>| {
            let text = percent_decode_str(part(in_url?)?).decode_utf8_lossy();
            Some(Credential::Inline(Secret::new(text)))
        };
        let nats = Config {
            username: credential(keys, "nats.username")
                .or_else(|| in_url(|url| Some(url.username()))),
            password: credential(keys, "nats.password").or_else(|| in_url(Url::password)),
            token: credential(keys, "nats.token"),
            credentials: keys.read_optional("nats.credentials_file", readable),
            tls: client_tls(keys, "nats.tls"),
            stream: keys.read("nats.stream", stream),
            subject: keys.read("nats.subject", template),
            create_stream: keys.read("nats.create_stream", flag),
            replicas: keys.read("nats.replicas", count(5)),
            duplicate_window: keys.read("nats.duplicate_window", positive_duration(CENTURY)),
            max_age: keys.read("nats.max_age", positive_duration(CENTURY)),
            servers,
        };
        if nats.duplicate_window > nats.max_age {
            keys.reject("nats.duplicate_window: is longer than nats.max_age");
        }
        if nats.username.is_some() != nats.password.is_some() {
            keys.reject("nats: username and password go together");
        }
        nats
    }
}

fn nats_server(text: &str) -> Result<Url, String> {
    let server = url(text, &["nats", "tls"])?;
    if !server.username().is_empty() && server.password().is_none() {
        return Err("has a token in it: write that as nats.token, or nats.token_file".into());
    }
    Ok(server)
}

/// NATS' rule for stream names.
fn stream(value: &Value) -> Result<String, String> {
    let name = filled(value)?;
    let is_legal = |char: char| char.is_ascii_graphic() && !".*>/\\".contains(char);
    if name.len() > 255 || !name.chars().all(is_legal) {
        return Err(format!(
            "{name:?} is not a name for a stream: no blanks, '.', '*', '>', '/' or '\\'"
        ));
    }
    Ok(name)
}
