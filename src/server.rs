//! The accept loop of both listeners: how many connections are allowed, their timeouts, TLS, and the
//! order in which they are closed. It knows nothing about the content of requests.
//!
//! hyper's own timer for a request's head also runs while a kept-alive connection is idle, so the two
//! could not have different limits. Here each connection has its own clock.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// The maximum size of a request's head.
const MAX_HEAD_BYTES: u32 = 32 * 1024;

/// How many connections over the limit get an answer at a time; the rest are just closed.
const MAX_TURNED_AWAY: usize = 64;

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

/// Who sent a request: an extension of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What a listener allows.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    /// The time allowed for sending a request's head, and for a TLS handshake.
    pub(crate) header_timeout: Duration,
    /// The time allowed between two requests on a connection.
    pub(crate) idle_timeout: Duration,
    /// Whether a client that has closed its sending side still gets its answer. Where answers are
    /// endless, that close is the only sign that the client is gone.
    pub(crate) half_close: bool,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What hyper requires of a service, in one place.
pub(crate) trait HttpService:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
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
        let connections = Arc::new(Semaphore::new(self.limits.max_connections));
        let turning_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
        let is_closed = Arc::new(AtomicBool::new(false));
        let admit = |stream: TcpStream, peer: SocketAddr| {
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                on_turned_away();
                if let (Ok(permit), None) = (turning_away.clone().try_acquire_owned(), &self.tls) {
                    tokio::spawn(turn_away(stream, self.turned_away.clone(), permit));
                }
                return;
            };
            let connection = Connection {
                limits: self.limits.clone(),
                tls: self.tls.as_ref().map(|tls| tls.borrow().clone()),
                phase: self.phase.clone(),
                is_closed: is_closed.clone(),
                peer: Peer(peer),
                _permit: permit,
            };
            tokio::spawn(connection.serve(stream, service.clone()));
        };

        let mut phase = self.phase.clone();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => admit(stream, peer),
                    // Usually out of file descriptors: retrying at once would spin.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                () = reached(&mut phase, Phase::Closed) => break,
            }
        }
        // Closing the listener would reset connections that the kernel has already accepted. Ask the
        // kernel itself, because tokio only learns of them at its next poll.
        if let Ok(listener) = self.listener.into_std() {
            while let Ok((stream, peer)) = listener.accept() {
                let nonblocking = stream.set_nonblocking(true);
                if let Ok(stream) = nonblocking.and_then(|()| TcpStream::from_std(stream)) {
                    admit(stream, peer);
                }
            }
        }
        // Only now: a client whose connection is closed with its answer reconnects at once, and would
        // otherwise run into the closing listener.
        is_closed.store(true, Relaxed);

        let all = u32::try_from(self.limits.max_connections).unwrap_or(u32::MAX);
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

/// One connection, from the accept loop to its end.
struct Connection {
    limits: Limits,
    tls: Option<Arc<ServerConfig>>,
    phase: watch::Receiver<Phase>,
    is_closed: Arc<AtomicBool>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream, service: impl HttpService) {
        let _ = stream.set_nodelay(true); // a failure only costs latency
        let Some(tls) = self.tls.clone() else {
            return self.converse(stream, service, false).await;
        };
        let handshake = TlsAcceptor::from(tls).accept(stream);
        match timeout(self.limits.header_timeout, handshake).await {
            Ok(Ok(stream)) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.converse(stream, service, is_http2).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn converse<S: HttpService, IO>(self, io: IO, service: S, is_http2: bool)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(!is_http2));
        let io = Observed { io: TokioIo::new(io), activity: activity.clone() };
        let (phase, is_closed) = (self.phase.clone(), self.is_closed.clone());
        let (observed, peer) = (activity.clone(), self.peer);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let busy = Busy::enter(observed.clone());
            let is_http1 = request.version() < Version::HTTP_2;
            let (phase, is_closed) = (phase.clone(), is_closed.clone());
            let answer = service.call(request);
            async move {
                let mut response = answer.await?;
                let is_last = is_closed.load(Relaxed) || *phase.borrow() == Phase::LastCalls;
                if is_http1 && is_last {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                // The answer's body holds the guard, so a request counts as being answered until the body
                // is sent.
                let guard = move |error| {
                    let _ = &busy;
                    error
                };
                Ok::<_, S::Error>(response.map(|body| body.map_err(guard)))
            }
        });
        if is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD_BYTES)
                .max_concurrent_streams(128)
                .keep_alive_interval(Duration::from_secs(20));
            let connection = builder.serve_connection(io, service);
            self.watch(connection, |connection| connection.graceful_shutdown(), &activity).await;
        } else {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(MAX_HEAD_BYTES as usize).half_close(self.limits.half_close);
            let connection = builder.serve_connection(io, service);
            self.watch(connection, |connection| connection.graceful_shutdown(), &activity).await;
        }
    }

    /// Drives a connection until it ends, its time is up, or its listener has stopped.
    async fn watch<C, E>(mut self, connection: C, finish: impl Fn(Pin<&mut C>), activity: &Activity)
    where
        C: Future<Output = Result<(), E>>,
    {
        let mut connection = pin!(connection);
        let mut deadline = pin!(sleep_until(activity.deadline(&self.limits)));
        let mut next = Phase::Finishing;
        loop {
            tokio::select! {
                _ = connection.as_mut() => return, // an error means that the client went away
                () = deadline.as_mut() => {
                    let due = activity.deadline(&self.limits);
                    if due <= Instant::now() {
                        return;
                    }
                    deadline.as_mut().reset(due);
                }
                () = reached(&mut self.phase, next) => {
                    if next == Phase::Ended {
                        return;
                    }
                    next = Phase::Ended;
                    finish(connection.as_mut());
                }
            }
        }
    }
}

/// The state of a connection, and since when: idle, sending a request's head, or being answered.
struct Activity {
    opened: Instant,
    /// Whether data between two requests is the start of a head: not if it may also be a ping.
    has_heads: bool,
    /// Requests that are being answered.
    answering: AtomicUsize,
    is_in_head: AtomicBool,
    /// Milliseconds from `opened` to the last change.
    since: AtomicU64,
}

impl Activity {
    /// A new connection starts out waiting for a head.
    fn new(has_heads: bool) -> Self {
        Activity {
            opened: Instant::now(),
            has_heads,
            answering: 0.into(),
            is_in_head: true.into(),
            since: 0.into(),
        }
    }

    fn changed(&self) {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(elapsed, Relaxed);
    }

    fn received(&self) {
        let is_idle = self.answering.load(Relaxed) == 0 && !self.is_in_head.load(Relaxed);
        if is_idle && self.has_heads {
            self.is_in_head.store(true, Relaxed);
            self.changed();
        }
    }

    /// When to check again, or, if in the past, to close. Answering has its own time limits.
    fn deadline(&self, limits: &Limits) -> Instant {
        let since = self.opened + Duration::from_millis(self.since.load(Relaxed));
        if self.answering.load(Relaxed) > 0 {
            Instant::now() + limits.header_timeout.min(limits.idle_timeout)
        } else if self.is_in_head.load(Relaxed) {
            since + limits.header_timeout
        } else {
            since + limits.idle_timeout
        }
    }
}

/// Marks a request as being answered for as long as this value lives.
struct Busy(Arc<Activity>);

impl Busy {
    fn enter(activity: Arc<Activity>) -> Self {
        activity.answering.fetch_add(1, Relaxed);
        activity.is_in_head.store(false, Relaxed);
        Busy(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Relaxed);
        self.0.changed();
    }
}

/// A stream that notices when something arrives.
struct Observed<IO> {
    io: TokioIo<IO>,
    activity: Arc<Activity>,
}

impl<IO: AsyncRead + Unpin> Read for Observed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffer: ReadBufCursor,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(context, buffer));
        self.activity.received();
        Poll::Ready(read)
    }
}

impl<IO: AsyncWrite + Unpin> Write for Observed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffers: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}

/// Binds, with the address in the error.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {address}: {error}; is another program using the port?")
    })
}
