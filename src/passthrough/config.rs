//! `[passthrough]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use hyper::Uri;
use url::{Host, Url};

use crate::config::value::{HOUR, count, positive_duration, readable, text};
use crate::config::{Keys, Value};

/// The longest wait for a connection: a backend is near.
const MAX_CONNECT: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(super) url: Option<BackendUrl>,
    pub(super) timeout: Duration,
    pub(super) max_in_flight: usize,
    pub(super) ca_file: Option<PathBuf>,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        let url = keys.read("passthrough.url", backend_url);
        if let Some(url) = &url {
            keys.show("passthrough.url", Value::from(url.shown()));
        }
        Config {
            url,
            timeout: keys.read("passthrough.timeout", positive_duration(HOUR)),
            max_in_flight: keys.read("passthrough.max_in_flight", count(100_000)),
            ca_file: keys.read_optional("passthrough.ca_file", readable),
        }
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.timeout.min(MAX_CONNECT)
    }

    /// Whether the backend would be this listener itself, as far as the URL shows that.
    pub(crate) fn is_at(&self, listen: SocketAddr) -> bool {
        let Some(BackendUrl(url)) = &self.url else { return false };
        let is_this_host = match url.host() {
            Some(Host::Ipv4(ip)) => is_here(ip.into(), listen.ip()),
            Some(Host::Ipv6(ip)) => is_here(ip.into(), listen.ip()),
            Some(Host::Domain(name)) => {
                name == "localhost" && is_here(Ipv4Addr::LOCALHOST.into(), listen.ip())
            }
            None => false,
        };
        is_this_host && url.port_or_known_default() == Some(listen.port())
    }

    /// The backend, without what its query may keep secret.
    pub(super) fn shown(&self) -> String {
        self.url.as_ref().map(BackendUrl::shown).unwrap_or_default()
    }
}

fn is_here(ip: IpAddr, listen: IpAddr) -> bool {
    ip == listen || listen.is_unspecified() && ip.is_loopback()
}

/// Where the backend takes callbacks.
#[derive(Debug, Clone)]
pub(super) struct BackendUrl(Url);

impl BackendUrl {
    /// The URL with the query of a callback, behind its own.
    pub(super) fn uri(&self, query: &str) -> anyhow::Result<Uri> {
        let mut text = self.0.as_str().to_owned();
        if !query.is_empty() {
            let joint = match self.0.query() {
                None => "?",
                Some("") => "",
                Some(_) => "&",
            };
            text.push_str(joint);
            text.push_str(query);
        }
        text.parse().context("the query cannot be part of a URL")
    }

    fn shown(&self) -> String {
        let mut url = self.0.clone();
        if url.query().is_some() {
            url.set_query(Some("***"));
        }
        url.to_string()
    }
}

/// Never quotes the text: its query may hold a secret.
fn backend_url(value: &Value) -> Result<Option<BackendUrl>, String> {
    let text = text(value)?.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(format!("begins with {}://, expected http:// or https://", url.scheme()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password, which are not sent: leave them out".into());
    }
    if url.fragment().is_some() {
        return Err("has a fragment (#…), which no server ever sees: leave it out".into());
    }
    Ok(Some(BackendUrl(url)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callbacks_query_follows_the_urls_own_to_the_letter() {
        let query = "SdkAppid=1&Sign=a%2Fb&x=%zz&&y=";
        for (url, expected) in [
            ("http://h", "http://h/?"),
            ("http://h:81/a/b", "http://h:81/a/b?"),
            ("http://h/a?", "http://h/a?"),
            ("https://h/a?k=v&w=%20", "https://h/a?k=v&w=%20&"),
        ] {
            let url = backend_url(&Value::from(url)).unwrap().unwrap();
            assert_eq!(url.uri(query).unwrap().to_string(), format!("{expected}{query}"));
        }
    }

    #[test]
    fn a_url_that_cannot_be_a_backend_is_refused_without_being_quoted() {
        assert!(backend_url(&Value::from("")).unwrap().is_none());
        for (url, expected) in [
            ("backend:8080/secret", "begins with backend://"),
            ("not a url secret", "is not a URL"),
            ("ftp://h/secret", "begins with ftp://"),
            ("http://:80/secret", "is not a URL"),
            ("http://u:secret@h/", "holds a user or a password"),
            ("http://h/#secret", "has a fragment"),
        ] {
            let reason = backend_url(&Value::from(url)).unwrap_err();
            assert!(reason.starts_with(expected) && !reason.contains("secret"), "{url}: {reason}");
        }
        let url = backend_url(&Value::from("https://h/a?key=secret")).unwrap().unwrap();
        assert_eq!(url.shown(), "https://h/a?***");
    }
}
