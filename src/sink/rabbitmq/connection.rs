//! A connection to RabbitMQ: where it goes, who asks, how it is protected, and whether the broker has
//! blocked it. Credentials and PEM files are read anew for each connection, so they can be changed
//! under a running bridge.

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

use super::super::{Kind, Reason};
use super::errors;
use crate::config::{self, ClientTls};

/// Seconds between heartbeats, unless the URL has `?heartbeat=`. After two silent ones lapin counts
/// the broker as gone: nothing else shows that it is frozen while there is nothing to deliver.
const HEARTBEAT: u16 = 5;

/// How long to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a batch in flight waits after the broker has blocked the connection: what it had read by
/// then is still confirmed, and need not be sent twice.
const AFTER_BLOCKED: Duration = Duration::from_secs(1);

/// `rabbitmq.url`, taken apart.
pub(super) struct Address {
    pub(super) uri: AMQPUri,
}

impl Address {
    pub(super) fn new(config: &config::Rabbitmq) -> Result<Self, String> {
        let mut uri: AMQPUri = config.url.as_str().parse()?;
        if uri.vhost.is_empty() {
            uri.vhost = "/".into();
        }
        // lapin takes an IPv6 address for none.
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

    fn with_credentials(&self, config: &config::Rabbitmq) -> Result<AMQPUri, Reason> {
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

/// An open connection, and the channel that is published on.
pub(super) struct Link {
    /// In confirm mode. There is none at first, and none after confirms were left open on it.
    pub(super) channel: Option<Channel>,
    pub(super) alarm: Alarm,
    pub(super) connection: Connection,
    _cord: Arc<Cord>,
}

impl Link {
    pub(super) async fn connect(
        config: &config::Rabbitmq,
        address: &Address,
        within: Duration,
    ) -> Result<Self, Reason> {
        let (uri, tls) = prepare(config, address)?;
        let cord = Arc::new(Cord::default());
        let connecting = timeout(within, connect(uri, tls, &cord)).await;
        let connection = connecting
            .map_err(|_| {
                let text = format!("{} has not answered within {within:?}", address.shown());
                Reason::new(Kind::Unreachable, text)
            })?
            .map_err(|error| errors::sort_at_connecting(&error, &address.shown()))?;
        let alarm = Alarm::watch(&connection);
        Ok(Link { channel: None, alarm, connection, _cord: cord })
    }

    pub(super) fn is_sound(&self) -> bool {
        let has_channel = self.channel.as_ref().is_none_or(|channel| channel.status().connected());
        self.connection.status().connected() && has_channel
    }

    pub(super) async fn open_channel(&mut self) -> Result<(), Reason> {
        let channel = self.connection.create_channel().await;
        let channel = channel.map_err(|error| errors::sort(&error))?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirms.map_err(|error| errors::sort(&error))?;
        self.channel = Some(channel);
        Ok(())
    }

    pub(super) fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    /// Says goodbye, for the sake of the broker's log: whether it listens does not matter.
    pub(super) async fn close(self) {
        let _ = timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
    }
}

/// Whether the broker has blocked the connection, as it does to publishers when its memory or disk runs
/// low: it reads no more from them, and so confirms nothing.
pub(super) struct Alarm {
    status: ConnectionStatus,
    events: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
    /// What the broker said.
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
            self.heed(event);
        }
        self.status.blocked().then(|| {
            let text = format!(
                "RabbitMQ has blocked the connection ({}): its memory or disk runs low, see \
                 `rabbitmq-diagnostics alarms` there; delivery goes on when the alarm is over",
                self.cause
            );
            Reason::new(Kind::Blocked, text)
        })
    }

    /// Ends once the connection has been blocked for a moment.
    pub(super) async fn has_lasted(&mut self) {
        loop {
            if self.status.blocked() {
                sleep(AFTER_BLOCKED).await;
                if self.status.blocked() {
                    return;
                }
            }
            match self.events.next().await {
                Some(event) => self.heed(event),
                None => std::future::pending().await,
            }
        }
    }

    fn heed(&mut self, event: Event) {
        if let Event::ConnectionBlocked(cause) = event {
            self.cause = cause;
        }
    }
}

/// A second handle to the socket, which it shuts down when it goes. lapin serves a connection on a
/// thread of its own and gives neither up before the broker has said something, which a frozen one
/// never does: without this each attempt would leave a thread and a socket behind.
#[derive(Default)]
struct Cord {
    socket: OnceLock<TcpStream>,
}

impl Drop for Cord {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.get() {
            let _ = socket.shutdown(Shutdown::Both); // fails if the other side was faster
        }
    }
}

/// What is read from files: an error is one of theirs.
pub(super) fn prepare(
    config: &config::Rabbitmq,
    address: &Address,
) -> Result<(AMQPUri, OwnedTLSConfig), Reason> {
    Ok((address.with_credentials(config)?, read_tls(&config.tls)?))
}

async fn connect(
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    cord: &Arc<Cord>,
) -> Result<Connection, lapin::Error> {
    let version = env!("CARGO_PKG_VERSION");
    let properties = ConnectionProperties::default()
        .with_connection_name("topic-bridge".into())
        .with_client_property("product".into(), "topic-bridge".into())
        .with_client_property("version".into(), version.into());
    let cord = Arc::downgrade(cord);
    let runtime = lapin::runtime::default_runtime()?;
    // What lapin does itself, but for the cord.
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
                // Without a cord nobody waits for the connection any more.
                let cord =
                    cord.upgrade().ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))?;
                let _ = cord.socket.set(socket.into());
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
