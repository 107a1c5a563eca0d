//! `[ingress]`, and with it `[[apps]]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;

use super::apps::{self, AppConfig};
use crate::config::value::{
    CENTURY, DAY, HOUR, address, choice, count, duration, file, flag, positive_duration, size, text,
};
use crate::config::{Keys, Value};
use crate::tls::TlsFiles;

/// More than any sink takes: RabbitMQ stops at 16 MiB.
const MAX_BODY_BYTES: u64 = 16 << 20;

/// More than a process can have files open.
const MAX_CONNECTIONS: u64 = 1_000_000;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) path: String,
    pub(crate) max_body_bytes: u64,
    pub(crate) request_timeout: Duration,
    pub(crate) ack_deadline: Duration,
    /// With `answer = "delivered"`: until when an answer waits for the broker.
    pub(crate) delivered_by: Option<Duration>,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_skew_seconds: u64,
    pub(crate) max_in_flight: usize,
    pub(crate) max_connections: usize,
    pub(crate) drain_delay: Duration,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) apps: Vec<AppConfig>,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        let mut config = Config {
            listen: keys.read("ingress.listen", address),
            path: keys.read("ingress.path", path),
            max_body_bytes: keys.read("ingress.max_body_bytes", size(MAX_BODY_BYTES)),
            request_timeout: keys.read("ingress.request_timeout", positive_duration(HOUR)),
            ack_deadline: keys.read("ingress.ack_deadline", positive_duration(HOUR)),
            delivered_by: delivered_by(keys),
            header_timeout: keys.read("ingress.header_timeout", positive_duration(HOUR)),
            idle_timeout: keys.read("ingress.idle_timeout", positive_duration(DAY)),
            max_skew_seconds: keys.read("ingress.max_skew", whole_seconds),
            max_in_flight: keys.read("ingress.max_in_flight", count(MAX_CONNECTIONS)),
            max_connections: keys.read("ingress.max_connections", count(MAX_CONNECTIONS)),
            drain_delay: keys.read("ingress.drain_delay", duration(HOUR)),
            tls: tls_files(keys),
            apps: Vec::new(),
        };
        let trust_network = keys.read("ingress.trust_network", flag);
        config.apps = apps::read(keys);
        let is_public = !config.listen.ip().is_loopback();
        if is_public && !trust_network && config.apps.iter().any(|app| app.allow_unsigned) {
            keys.reject(format!(
                "apps: allow_unsigned beside the public address {} lets anybody in; listen on \
                 127.0.0.1, configure tokens, or set ingress.trust_network = true if the network \
                 keeps others out",
                config.listen
            ));
        }
        config
    }

    /// For one request: its default gives way to a short deadline.
    pub(super) fn time_to_read(&self) -> Duration {
        self.request_timeout.min(self.ack_deadline)
    }
}

fn delivered_by(keys: &mut Keys) -> Option<Duration> {
    let waits =
        keys.read("ingress.answer", |v| choice(v, &[("durable", false), ("delivered", true)]));
    let by = keys.read("ingress.delivered_by", positive_duration(HOUR));
    waits.then_some(by)
}

fn tls_files(keys: &mut Keys) -> Option<TlsFiles> {
    let cert = keys.read_optional("ingress.tls.cert_file", file);
    let key = keys.read_optional("ingress.tls.key_file", file);
    let client_ca: Option<PathBuf> = keys.read_optional("ingress.tls.client_ca_file", file);
    match (cert, key, client_ca) {
        (Some(cert), Some(key), client_ca) => Some(TlsFiles { cert, key, client_ca }),
        (None, None, None) => None,
        _ => {
            keys.reject("ingress.tls: needs both cert_file and key_file");
            None
        }
    }
}

fn whole_seconds(value: &Value) -> Result<u64, String> {
    let duration = duration(CENTURY)(value)?;
    if duration.subsec_nanos() != 0 {
        return Err("must be whole seconds, as RequestTime is".into());
    }
    Ok(duration.as_secs())
}

fn path(value: &Value) -> Result<String, String> {
    let path = text(value)?.trim();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#{}*".contains(&byte);
    let is_requested = |path: &str| path.parse::<Uri>().is_ok_and(|uri| uri.path() == path);
    if !path.starts_with('/') || !path.bytes().all(is_plain) || !is_requested(path) {
        return Err(format!(
            "{path:?} is not a plain URL path: it starts with / and has no ?, #, {{, }} or *"
        ));
    }
    if path.contains("/:") {
        return Err(format!("{path:?} has a placeholder: the path is taken to the letter"));
    }
    Ok(path.to_owned())
}
