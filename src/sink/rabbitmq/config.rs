//! `[rabbitmq]`.

use url::Url;

use super::super::access::{ClientTls, Credential, client_tls, credential, masked, template, url};
use crate::config::value::{choice, filled, text};
use crate::config::{Keys, Value};
use crate::routing::Template;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// May hold a username and a password; the separate keys take precedence.
    pub(crate) url: Url,
    pub(crate) username: Option<Credential>,
    pub(crate) password: Option<Credential>,
    pub(crate) tls: ClientTls,
    pub(crate) exchange: String,
    pub(crate) routing_key: Template,
    pub(crate) declare: Declare,
    /// A quorum queue that gets everything.
    pub(crate) queue: Option<String>,
}

/// What the bridge does about the exchange and the queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Declare {
    /// Nothing: a missing exchange shows when an event is published.
    None,
    /// Checks whether they exist.
    Passive,
    /// Creates what is missing.
    Active,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
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
        Config {
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
}

/// AMQP's short string.
fn short(text: &str) -> Result<String, String> {
    if text.len() > 255 {
        return Err(format!("is {} bytes long, at most 255 are possible", text.len()));
    }
    Ok(text.to_owned())
}
