//! The accept loop of both listeners: how many connections are allowed, their timeouts, TLS, and the
//! order in which they are closed. It knows nothing about the content of requests.

mod activity;
mod connection;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::ServerConfig;

use connection::Connection;

/// How many connections over the limit get an answer at a time; the rest are just closed.
const MAX_TURNED_AWAY: usize = 64;

/// How many steps all TLS handshakes of a listener may take before those who are connected have their turn.
/// More would make a handshake in a crowd a little faster, and a callback behind the crowd slower.
const HANDSHAKE_STEPS: usize = 4;

/// How long a connection over the limit may take for each step.
const SPARE_TIMEOUT: Duration = Duration::from_secs(1);

/// A stopping listener goes through these phases, forwards only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Each answer says `Connection: close`; new connections are still accepted.
    LastCalls,
    /// New connections are not accepted, and each answer says `Connection: close`.
    Closed,
    /// Idle connections are closed; requests in progress are finished.
    Finishing,
    /// Remaining connections are cut off.
    Ended,
}

/// What a listener allows.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    /// Connections over the limit that are still served, briefly: their requests carry [`Spare`].
    pub(crate) spare_connections: usize,
    /// The time allowed for sending a request's head, and for a TLS handshake.
    pub(crate) header_timeout: Duration,
    /// The time allowed between two requests on a connection.
    pub(crate) idle_timeout: Duration,
    /// The time in which a client has to take at least something of an answer that is ready.
    pub(crate) write_timeout: Duration,
    /// Whether a client that has closed its sending side still gets its answer. Where answers are
    /// endless, that close is the only sign that the client is gone.
    pub(crate) half_close: bool,
}

impl Limits {
    /// Those of a connection over the limit.
    fn spare(&self) -> Self {
        let [header_timeout, idle_timeout, write_timeout] =
            [self.header_timeout, self.idle_timeout, self.write_timeout]
                .map(|limit| limit.min(SPARE_TIMEOUT));
        Limits { header_timeout, idle_timeout, write_timeout, ..self.clone() }
    }
}

/// Whose request it is: an extension of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// An extension of a request that came on a connection over the limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spare;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What hyper requires of a service, in one place.
pub(crate) trait HttpService:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Body = B;
}

pub(crate) struct Server {
    pub(crate) listener: TcpListener,
    pub(crate) limits: Limits,
    pub(crate) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// The JSON answer, with status 503, for a connection over the limit.
    pub(crate) turned_away: String,
}

impl Server {
    /// Serves until the phase is [`Phase::Ended`], or all connections are gone after
    /// [`Phase::Closed`]. `on_turned_away` is called for each connection over the limit.
    pub(crate) async fn run(self, service: impl HttpService, on_turned_away: impl Fn()) {
        let Limits { max_connections, spare_connections, .. } = self.limits;
        let all = max_connections.saturating_add(spare_connections).min(Semaphore::MAX_PERMITS);
        let connections = Arc::new(Semaphore::new(all));
        let turning_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKE_STEPS));
        let is_closed = Arc::new(AtomicBool::new(false));
        let admit = |(stream, peer): (TcpStream, SocketAddr)| {
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                on_turned_away();
                if let (Ok(permit), None) = (turning_away.clone().try_acquire_owned(), &self.tls) {
                    tokio::spawn(turn_away(stream, self.turned_away.clone(), permit));
                }
                return;
            };
            let is_spare = connections.available_permits() < spare_connections;
            let connection = Connection {
                limits: if is_spare { self.limits.spare() } else { self.limits.clone() },
                peer: Peer(peer),
                is_spare,
                tls: self.tls.as_ref().map(|tls| tls.borrow().clone()),
                handshakes: handshakes.clone(),
                phase: self.phase.clone(),
                is_closed: is_closed.clone(),
                _permit: permit,
            };
            tokio::spawn(connection.serve(stream, service.clone()));
        };

        let mut phase = self.phase.clone();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => admit(accepted),
                    // Usually out of file descriptors: retrying at once would spin.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                () = reached(&mut phase, Phase::Closed) => break,
            }
        }
        accepted(self.listener).into_iter().for_each(&admit);
        // Only now: a client whose connection is closed with its answer reconnects at once, and would
        // otherwise run into the closing listener.
        is_closed.store(true, Relaxed);

        let all = u32::try_from(all).unwrap_or(u32::MAX);
        tokio::select! {
            _ = connections.acquire_many(all) => {}
            () = reached(&mut phase, Phase::Ended) => {}
        }
    }
}

/// Completes once the listener has reached or passed `phase`, or is gone.
pub(crate) async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    let _ = phases.wait_for(|now| *now >= phase).await;
}

/// Closes a listener. Connections that the kernel has already accepted would be reset by that: these are
/// returned. It is the kernel itself that is asked, because tokio only learns of them at its next poll.
fn accepted(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let mut accepted = Vec::new();
    while let Ok((stream, peer)) = listener.accept() {
        let nonblocking = stream.set_nonblocking(true);
        if let Ok(stream) = nonblocking.and_then(|()| TcpStream::from_std(stream)) {
            accepted.push((stream, peer));
        }
    }
    accepted
}

/// Tells a connection over the limit why it is closed. Reads on a little, because closing with unread
/// data would lose the answer.
async fn turn_away(mut stream: TcpStream, body: String, _permit: OwnedSemaphorePermit) {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let say = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut unread = [0; 4096];
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(Duration::from_millis(500), say).await; // best effort
}

/// Binds, with the address in the error.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {address}: {error}; is another program using the port?")
    })
}
