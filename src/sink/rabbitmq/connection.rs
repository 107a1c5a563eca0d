//! A connection to RabbitMQ: its address, credentials and TLS, and whether the broker has blocked it.
//! Credentials and PEM files are read again for each connection, so they can be changed while the bridge
//! is running.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fs, io};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ConnectionStatus, Event};
use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};

use super::super::access::ClientTls;
use super::{Config, Rabbitmq, errors};
use crate::verdict::{Kind, Reason};

/// Seconds between heartbeats, unless the URL has `?heartbeat=`. After two missed ones lapin considers
/// the broker gone: while there is nothing to deliver, nothing else shows that it is frozen.
const HEARTBEAT: u16 = 5;

/// How long closing may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a batch in flight waits after the broker has blocked the connection: what it had read by then
/// is still confirmed, and need not be sent twice.
const AFTER_BLOCKED: Duration = Duration::from_secs(1);

/// `rabbitmq.url`, parsed.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
}

impl Address {
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let mut uri: AMQPUri = config.url.as_str().parse()?;
        if uri.vhost.is_empty() {
            uri.vhost = "/".into();
        }
        // lapin does not recognise an IPv6 address in brackets.
        let host = config.url.host_str().unwrap_or_default();
        uri.authority.host = host.trim_start_matches('[').trim_end_matches(']').into();
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(Address { uri })
    }

    /// For the operator: without user and password.
    pub(super) fn shown(&self) -> String {
        let authority = &self.uri.authority;
        format!("{}://{}:{}", self.uri.scheme, authority.host, authority.port)
    }

    fn with_credentials(&self, config: &Config) -> Result<AMQPUri, Reason> {
        let mut uri = self.uri.clone();
        let user = &mut uri.authority.userinfo;
        for (credential, place) in
            [(&config.username, &mut user.username), (&config.password, &mut user.password)]
        {
            if let Some(credential) = credential {
                let secret =
                    credential.read().map_err(|text| Reason::new(Kind::Credentials, text))?;
                *place = secret.reveal().into();
            }
        }
        Ok(uri)
    }
}

/// An open connection, and its channel for publishing.
pub(crate) struct Link {
    pub(super) rabbitmq: Rabbitmq,
    /// In confirm mode. `None` at first, and after confirms were left open on it.
    pub(super) channel: Option<Channel>,
    pub(super) alarm: Alarm,
    pub(super) connection: Connection,
    /// Confirms were left open on a connection that is not blocked.
    pub(super) is_doubted: bool,
    _socket: Arc<SocketGuard>,
}

impl Link {
    pub(super) async fn connect(
        rabbitmq: &Rabbitmq,
        (uri, tls): (AMQPUri, OwnedTLSConfig),
    ) -> Result<Self, Reason> {
        let (address, within) = (rabbitmq.address.shown(), rabbitmq.patience);
        let socket = Arc::new(SocketGuard::default());
        let connecting = timeout(within, connect(uri, tls, &socket)).await;
        let connection = connecting
            .map_err(|_| {
                let text = format!("{address} has not answered within {within:?}");
                Reason::new(Kind::Unreachable, text)
            })?
            .map_err(|error| errors::sort_at_connecting(&error, &address))?;
        Ok(Link {
            rabbitmq: rabbitmq.clone(),
            channel: None,
            alarm: Alarm::watch(&connection),
            connection,
            is_doubted: false,
            _socket: socket,
        })
    }

    pub(super) fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    /// For the broker's log: whether the broker listens does not matter.
    pub(super) async fn say_goodbye(&self) {
        let _ = timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
    }
}

pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, Reason> {
    let opening = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    };
    opening.await.map_err(|error: lapin::Error| errors::sort(&error))
}

/// Whether the broker has blocked the connection, as it does with publishers when its memory or disk runs
/// low: it stops reading from them, and so confirms nothing.
pub(super) struct Alarm {
    status: ConnectionStatus,
    events: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
    /// The broker's explanation.
    cause: String,
}

impl Alarm {
    fn watch(connection: &Connection) -> Self {
        let events = Box::pin(connection.events_listener());
        Alarm { status: connection.status().clone(), events, cause: String::new() }
    }

    /// Why nothing can be published now, if the connection is blocked.
    pub(super) fn check(&mut self) -> Option<Reason> {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.note(event);
        }
        self.status.blocked().then(|| {
            let text = format!(
                "RabbitMQ has blocked the connection ({}): it is running low on memory or disk space, see \
                 `rabbitmq-diagnostics alarms` there; delivery goes on when the alarm is over",
                self.cause
            );
            Reason::new(Kind::Blocked, text)
        })
    }

    /// Completes once the connection has been blocked for a moment.
    pub(super) async fn has_lasted(&mut self) {
        loop {
            if self.status.blocked() {
                sleep(AFTER_BLOCKED).await;
                if self.status.blocked() {
                    return;
                }
            }
            match self.events.next().await {
                Some(event) => self.note(event),
                None => std::future::pending().await,
            }
        }
    }

    fn note(&mut self, event: Event) {
        if let Event::ConnectionBlocked(cause) = event {
            self.cause = cause;
        }
    }
}

/// A second handle to the socket, which it shuts down when dropped. lapin serves a connection on its own
/// thread and releases neither before the broker has answered, which a frozen broker never does: without
/// this, each attempt would leak a thread and a socket.
#[derive(Default)]
struct SocketGuard {
    socket: OnceLock<TcpStream>,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.get() {
            let _ = socket.shutdown(Shutdown::Both); // fails if the other side closed first
        }
    }
}

/// Reads the files that a connection needs: an error concerns one of them.
pub(super) fn prepare(rabbitmq: &Rabbitmq) -> Result<(AMQPUri, OwnedTLSConfig), Reason> {
    let Rabbitmq { config, address, .. } = rabbitmq;
    Ok((address.with_credentials(config)?, read_tls(&config.tls)?))
}

async fn connect(
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    guard: &Arc<SocketGuard>,
) -> Result<Connection, lapin::Error> {
    let version = env!("CARGO_PKG_VERSION");
    let properties = ConnectionProperties::default()
        .with_connection_name("topic-bridge".into())
        .with_client_property("product".into(), "topic-bridge".into())
        .with_client_property("version".into(), version.into());
    let guard = Arc::downgrade(guard);
    let runtime = lapin::runtime::default_runtime()?;
    // What lapin does itself, plus the guard.
    Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let authority = &uri.authority;
            let addresses = lookup_host((authority.host.as_str(), authority.port)).await?;
            let addresses: Vec<_> = addresses.collect();
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            if let AsyncTcpStream::Plain(stream) = &stream {
                let socket = stream.get_ref().as_fd().try_clone_to_owned()?;
                // Without a guard nobody is waiting for the connection any more.
                let guard =
                    guard.upgrade().ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))?;
                let _ = guard.socket.set(socket.into());
            }
            Ok(match uri.scheme {
                AMQPScheme::AMQP => stream,
                AMQPScheme::AMQPS => stream.into_tls(&authority.host, tls.as_ref()).await?,
            })
        },
        properties,
    )
    .await
}

fn read_tls(tls: &ClientTls) -> Result<OwnedTLSConfig, Reason> {
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|error| {
            Reason::new(Kind::Credentials, format!("cannot read {}: {error}", path.display()))
        })
    };
    let identity = match &tls.identity {
        Some((cert, key)) => Some(OwnedIdentity::PKCS8 { pem: read(cert)?, key: read(key)? }),
        None => None,
    };
    let ca = tls.ca.as_deref().map(read).transpose()?;
    let cert_chain = ca.map(|pem| String::from_utf8_lossy(&pem).into_owned());
    Ok(OwnedTLSConfig { identity, cert_chain })
}
