//! One connection, from the accept loop to its end: its TLS handshake, its protocol, its time.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use super::activity::{Activity, AnswerBody, Busy};
use super::stream::Observed;
use super::{HttpService, Limits, Peer, Phase, Spare, reached};

/// The maximum size of a request's head. HTTP/2 counts 32 bytes more for each of its fields.
const MAX_HEAD_BYTES: usize = 32 * 1024;

pub(super) struct Connection {
    pub(super) limits: Limits,
    pub(super) peer: Peer,
    pub(super) is_spare: bool,
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// The listener's turns for a step of a handshake.
    pub(super) handshakes: Arc<Semaphore>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) is_closed: Arc<AtomicBool>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) async fn serve(self, stream: TcpStream, service: impl HttpService) {
        let _ = stream.set_nodelay(true); // a failure only costs latency
        let activity = Arc::new(Activity::new());
        let stream = Observed::new(stream, activity.clone());
        let Some(tls) = self.tls.clone() else {
            return self.converse(stream, service, activity, false).await;
        };
        let handshake = shake_hands(tls, stream, &self.handshakes);
        let peer = self.peer.0;
        match timeout(self.limits.header_timeout, handshake).await {
            Ok(Ok(stream)) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.converse(stream, service, activity, is_http2).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
        }
    }

    async fn converse<S: HttpService, IO>(
        self,
        io: IO,
        service: S,
        activity: Arc<Activity>,
        is_http2: bool,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        activity.begin(is_http2);
        let io = TokioIo::new(io);
        let (phase, is_closed) = (self.phase.clone(), self.is_closed.clone());
        let (peer, is_spare) = (self.peer, self.is_spare);
        let observed = activity.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let busy = Busy::enter(observed.clone());
            let is_http1 = request.version() < Version::HTTP_2;
            let (phase, is_closed) = (phase.clone(), is_closed.clone());
            request.extensions_mut().insert(peer);
            if is_spare {
                request.extensions_mut().insert(Spare);
            }
            let answer = service.call(request);
            async move {
                let mut response = answer.await?;
                let is_last =
                    is_spare || is_closed.load(Relaxed) || *phase.borrow() == Phase::LastCalls;
                if is_http1 && is_last {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, S::Error>(response.map(|body| AnswerBody::new(body, busy)))
            }
        });
        if is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD_BYTES as u32 + 1) // h2 refuses what is as large as this
                .max_concurrent_streams(128)
                .keep_alive_interval(Duration::from_secs(20));
            let connection = builder.serve_connection(io, service);
            self.watch(connection, |connection| connection.graceful_shutdown(), &activity).await;
        } else {
            let mut builder = http1::Builder::new();
            builder
                .max_header_size(MAX_HEAD_BYTES)
                .max_buf_size(MAX_HEAD_BYTES)
                .half_close(self.limits.half_close);
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
        let mut alarm = pin!(sleep_until(activity.deadline(&self.limits)));
        let limits = self.limits.clone();
        let mut next = Phase::Finishing;
        loop {
            let conversation = poll_fn(|context| {
                if connection.as_mut().poll(context).is_ready() {
                    return Poll::Ready(()); // an error means that the client went away
                }
                loop {
                    let due = activity.deadline(&limits);
                    if due < alarm.deadline() {
                        alarm.as_mut().reset(due);
                    }
                    if alarm.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    if due <= Instant::now() {
                        return Poll::Ready(());
                    }
                    alarm.as_mut().reset(due);
                }
            });
            tokio::select! {
                () = conversation => return,
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

/// A TLS handshake that lets others have their turn. Each of its steps may be milliseconds of arithmetic: so
/// few are taken, all handshakes of the listener together, before the runtime has looked again who else has
/// something to do. No turn is kept while the other side is waited for: silence would hold everybody up.
async fn shake_hands(
    tls: Arc<ServerConfig>,
    stream: Observed,
    handshakes: &Semaphore,
) -> io::Result<TlsStream<Observed>> {
    let mut handshake = TlsAcceptor::from(tls).accept(stream);
    loop {
        if let Some(stream) = handshake.get_ref() {
            stream.moves().await?;
        }
        let _turn = handshakes.acquire().await;
        let step = poll_fn(|context| Poll::Ready(Pin::new(&mut handshake).poll(context))).await;
        yield_now().await; // until the runtime has looked for new data
        if let Poll::Ready(done) = step {
            return done;
        }
    }
}
