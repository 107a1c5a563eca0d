//! How brokers are reached, which certificates are trusted, and how the bridge authenticates: the parts
//! that the configurations of several brokers share.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use crate::config::value::{file, filled, readable, secret_file, text};
use crate::config::{Keys, Value};
use crate::routing::Template;
use crate::secret::Secret;

/// A credential, or the file to read it from each time it is needed.
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
            Credential::File(path) => secret_file(path).map(Secret::new),
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

/// Trusted authorities and our own identity for TLS connections to a broker: PEM files.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientTls {
    /// In addition to or instead of the public authorities, depending on the client library.
    pub(crate) ca: Option<PathBuf>,
    /// Certificate chain and key, presented to the broker.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// `key`, or `key_file` with the file that holds it, which must exist.
pub(super) fn credential(keys: &mut Keys, key: &str) -> Option<Credential> {
    let inline = keys.read_optional(key, |value| text(value).map(Secret::new));
    let named = keys.read_optional(&format!("{key}_file"), |value| {
        let path = file(value)?;
        secret_file(&path).map(|_| path)
    });
    if inline.is_some() && !key.ends_with("username") {
        keys.show(key, Value::from("***"));
    }
    if inline.is_some() && named.is_some() {
        keys.reject(format!("{key}: is set twice, also as {key}_file"));
    }
    inline.map(Credential::Inline).or(named.map(Credential::File))
}

pub(super) fn client_tls(keys: &mut Keys, section: &str) -> ClientTls {
    let ca = keys.read_optional(&format!("{section}.ca_file"), readable);
    let cert = keys.read_optional(&format!("{section}.cert_file"), readable);
    let key = keys.read_optional(&format!("{section}.key_file"), readable);
    if cert.is_some() != key.is_some() {
        keys.reject(format!("{section}: cert_file and key_file go together"));
    }
    ClientTls { ca, identity: cert.zip(key) }
}

/// Never quotes the text, which may contain a password.
pub(super) fn url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let text = text.trim();
    let text =
        if text.contains("://") { text.to_owned() } else { format!("{}://{text}", schemes[0]) };
    let url = Url::parse(&text).map_err(|error| {
        format!(
            "is not a URL: {error} (in a password, what is not a letter or digit is written as %XX)"
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
    // The end of a password with such a character in it, which would be shown as the path of another host.
    if url[url::Position::AfterPort..].contains('@') {
        return Err("has an @ after the host: in a username or password, write /, ? and # as %2f, %3f and %23".into());
    }
    Ok(url)
}

/// Without any credentials in the URL.
pub(crate) fn address_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn masked(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        let _ = url.set_password(Some("***")); // fails only without a host
    }
    url.to_string()
}

pub(super) fn template(value: &Value) -> Result<Template, String> {
    let text = filled(value)?;
    Template::parse(&text).map_err(|reason| format!("{text:?} {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by altering configurations at random: `check` showed the end of such a password.
    #[test]
    fn a_password_that_ends_the_host_is_refused_and_not_shown() {
        for mark in ["/", "?", "#"] {
            let text = format!("nats://bridge:12{mark}secret@nats:4222");
            let reason = url(&text, &["nats"]).unwrap_err();
            assert!(reason.contains("%2f") && !reason.contains("secret"), "{reason}");
        }
        let good = url("nats://bridge:1%2f@nats:4222/a", &["nats"]).unwrap();
        assert_eq!(masked(&good), "nats://bridge:***@nats:4222/a");
    }
}
