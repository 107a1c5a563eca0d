//! A connection to one of the servers, and its state. A client is not used again after losing its
//! connection: it would reconnect and publish what it still holds in the middle of what is being resent,
//! which would break the order.

use std::error::Error as _;
use std::future::ready;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{
    ConnectError, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, Server, ServerError,
};
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::access::address_of;
use super::{Config, Nats};
use crate::verdict::{Kind, Reason};

/// The shortest time between two pings.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Timeout for connecting to one server.
const PER_SERVER: Duration = Duration::from_secs(5);

/// An address where nothing can listen.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// A connection, and what its server has refused.
pub(crate) struct Link {
    pub(super) nats: Nats,
    pub(super) context: Context,
    pub(super) watch: Watch,
    /// It may hold unconfirmed messages.
    pub(super) is_doubted: bool,
}

/// Watches the state of a connection.
#[derive(Clone)]
pub(super) struct Watch(watch::Receiver<LinkState>);

/// The state of a connection, as its client reports it.
#[derive(Debug, Clone, PartialEq)]
enum LinkState {
    Up,
    Lost,
    /// The server does not allow this user what it tried. It says so separately from the answers, and
    /// leaves the publisher waiting.
    Forbidden(String),
}

impl Link {
    /// Tries each server once, in any order.
    pub(super) async fn connect(nats: &Nats, options: ConnectOptions) -> Result<Self, Reason> {
        let config = &nats.config;
        let mut servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
        fastrand::shuffle(&mut servers);
        let all = PER_SERVER * u32::try_from(servers.len()).unwrap_or(1) + PER_SERVER;
        let connecting = async {
            let mut failure = None;
            for server in servers {
                match connect(server, options.clone(), nats).await {
                    Ok(link) => return Ok(link),
                    Err(error) if is_refusal(&error) => return Err(explain(&error, config)),
                    Err(error) => failure = Some(explain(&error, config)),
                }
            }
            Err(failure.expect("the configuration names a server"))
        };
        timeout(all, connecting).await.unwrap_or_else(|_| {
            Err(Reason::new(Kind::Unreachable, unreachable(config, "no answer")))
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.watch.is_up() && self.context.client().connection_state() == State::Connected
    }
}

impl Watch {
    fn is_up(&self) -> bool {
        // The sender goes away with the client.
        self.0.has_changed().is_ok() && *self.0.borrow() == LinkState::Up
    }

    /// What the server has refused, which explains why something else failed or was not answered.
    pub(super) fn refusal(&self) -> Option<Reason> {
        match &*self.0.borrow() {
            LinkState::Forbidden(text) => Some(forbidden(text)),
            LinkState::Up | LinkState::Lost => None,
        }
    }

    /// Waits until the connection is no longer usable, and returns why.
    pub(super) async fn failed(&mut self) -> Reason {
        match self.0.wait_for(|state| *state != LinkState::Up).await.as_deref() {
            Ok(LinkState::Forbidden(text)) => forbidden(text),
            _ => lost(),
        }
    }
}

async fn connect(
    server: String,
    options: ConnectOptions,
    nats: &Nats,
) -> Result<Link, ConnectError> {
    let (state_now, state) = watch::channel(LinkState::Up);
    let options = options.event_callback(move |event| {
        match event {
            Event::Disconnected | Event::Closed => {
                state_now.send_replace(LinkState::Lost);
            }
            Event::ServerError(ServerError::Other(text))
                if text.to_lowercase().contains("permissions violation") =>
            {
                state_now.send_replace(LinkState::Forbidden(text));
            }
            _ => {}
        }
        async {}
    });
    let client = options.connect([server, NOWHERE.to_owned()].as_slice()).await?;
    // Acknowledgements are limited by the batch's deadline, which starts before any of them.
    let context = ContextBuilder::new();
    let context = context.timeout(nats.patience).max_ack_inflight(1 << 16).build(client);
    Ok(Link { nats: nats.clone(), context, watch: Watch(state), is_doubted: false })
}

/// Sends the client to its server the first time, and then nowhere. It cannot be told never to reconnect
/// (a limit of 0 means no limit), but it gives up permanently after one failed attempt.
fn only_once(pool: &[Server]) -> Option<ReconnectToServer> {
    let was_connected = pool.iter().any(|server| server.did_connect);
    let chosen = pool.get(usize::from(was_connected))?;
    Some(ReconnectToServer { addr: chosen.addr.clone(), delay: Some(Duration::ZERO) })
}

/// An error is about a file that cannot be read.
pub(super) async fn options(config: &Config, patience: Duration) -> Result<ConnectOptions, Reason> {
    let unreadable = |text: String| Reason::new(Kind::Credentials, text);
    let mut options = ConnectOptions::new()
        .name("topic-bridge")
        // The third unanswered ping in a row ends the connection, which must not be before `patience` is over.
        .ping_interval(PING_EVERY.max(patience / 2))
        .connection_timeout(PER_SERVER)
        .request_timeout(Some(patience))
        .reconnect_to_server_callback(|pool, _| ready(only_once(&pool)))
        .max_reconnects(1);
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(|error| unreadable(format!("{}: {error}", path.display())))?;
    }
    if let Some(token) = &config.token {
        options = options.token(token.read().map_err(unreadable)?.reveal().to_owned());
    }
    if let (Some(username), Some(password)) = (&config.username, &config.password) {
        let username = username.read().map_err(unreadable)?.reveal().to_owned();
        let password = password.read().map_err(unreadable)?.reveal().to_owned();
        options = options.user_and_password(username, password);
    }
    if let Some(ca) = &config.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = &config.tls.identity {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options)
}

fn forbidden(text: &str) -> Reason {
    let text = format!(
        "the server says: {text}; let this user publish to nats.subject and $JS.API.>, and \
         subscribe to _INBOX.>"
    );
    Reason::new(Kind::Credentials, text)
}

pub(super) fn lost() -> Reason {
    let text = "the connection to the server was lost: was it stopped, or the network cut?";
    Reason::new(Kind::Unreachable, text)
}

fn unreachable(config: &Config, error: &str) -> String {
    let servers: Vec<_> = config.servers.iter().map(address_of).collect();
    format!(
        "cannot connect to {}: {error}; is the server up, and nats.servers right?",
        servers.join(", ")
    )
}

/// Whether other servers, which have the same users, would answer the same.
fn is_refusal(error: &ConnectError) -> bool {
    matches!(
        error.kind(),
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation
    )
}

/// Why there is no connection.
fn explain(error: &ConnectError, config: &Config) -> Reason {
    let mut text = error.to_string();
    if let Some(source) = error.source().filter(|source| !text.contains(&source.to_string())) {
        text = format!("{text}: {source}");
    }
    match error.kind() {
        _ if is_refusal(error) => Reason::new(
            Kind::Credentials,
            format!(
                "the server does not let the bridge in: {text}; look at the credentials under [nats]"
            ),
        ),
        ConnectErrorKind::Tls => Reason::new(
            Kind::Unreachable,
            format!("no TLS connection: {text}; look at nats.tls, and at the server's certificate"),
        ),
        _ if text.contains("certificate") || text.contains("handshake") => Reason::new(
            Kind::Unreachable,
            format!("no TLS connection: {text}; look at nats.tls, and at the server's certificate"),
        ),
        _ => Reason::new(Kind::Unreachable, unreachable(config, &text)),
    }
}
