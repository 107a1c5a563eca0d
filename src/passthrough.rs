//! Callbacks of other commands, forwarded as they came to the backend that had them all before the bridge stood
//! in front of it. The backend's answer goes back as it is. Where there is none in time, the bridge answers OK
//! itself: a *before* callback must never block a user.
//!
//! An exchange is finished even if the platform has stopped waiting, so that the backend sees what it would see
//! without the bridge. A backend that cannot be reached is not tried again by each callback, but by a probe.

mod circuit;
mod config;
mod headers;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use crate::callback::PLATFORM_WAITS;
use crate::metrics::{Forwarded, Metrics};
use crate::server::Peer;
use crate::tls;
use circuit::Circuit;
pub(crate) use config::Config;

/// A backend's answer may be as large as this: four times what a callback may be by default.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Shorter than usual servers keep an idle connection (many for 5 s), because one that they close just as a
/// callback is sent on it takes the callback along.
const KEEP_IDLE: Duration = Duration::from_millis(1500);

type Connector = HttpsConnector<HttpConnector>;

/// Why there is no answer of the backend's.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Missed {
    #[error("the backend did not answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("the backend cannot be reached: {0}")]
    Unreachable(String),
    #[error("the backend could not be reached a moment ago: {0}")]
    Skipped(String),
    #[error("the exchange with the backend failed: {0}")]
    Failed(String),
    #[error("the backend's answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    #[error("{0} callbacks wait for the backend already (passthrough.max_in_flight)")]
    Overloaded(usize),
}

impl Missed {
    fn label(&self) -> Forwarded {
        match self {
            Missed::Timeout(_) => Forwarded::Timeout,
            Missed::Unreachable(_) => Forwarded::Unreachable,
            Missed::Skipped(_) => Forwarded::Skipped,
            Missed::Failed(_) => Forwarded::Failed,
            Missed::TooLarge => Forwarded::TooLarge,
            Missed::Overloaded(_) => Forwarded::Overloaded,
        }
    }
}

/// The way to the backend.
pub(crate) struct Passthrough {
    config: Config,
    client: Client<Connector, Full<Bytes>>,
    in_flight: Arc<Semaphore>,
    circuit: Arc<Circuit>,
    metrics: Arc<Metrics>,
}

impl Passthrough {
    /// Nothing, where no backend is configured. Connects to nobody yet.
    pub(crate) fn new(config: Config, metrics: Arc<Metrics>) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(url) = config.url.clone() else { return Ok(None) };
        let connector = connector(&config)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(config.max_in_flight)
            .http1_title_case_headers(true) // as the platform writes them; some backends insist
            .build(connector.clone());
        Ok(Some(Arc::new(Passthrough {
            client,
            in_flight: Arc::new(Semaphore::new(config.max_in_flight)),
            circuit: Circuit::new(connector, url.uri("")?, config.shown()),
            config,
            metrics,
        })))
    }

    /// Forwards a callback, and waits for the backend's answer until `passthrough.timeout` after it arrived.
    pub(crate) async fn forward(
        self: &Arc<Self>,
        head: &Parts,
        body: Bytes,
        arrived: Instant,
    ) -> Result<Response<Bytes>, Missed> {
        let started = Instant::now();
        let result = self.exchange(head, body, arrived).await;
        self.metrics.passthrough_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.count_forwarded(match &result {
            Ok(_) => Forwarded::Answered,
            Err(missed) => missed.label(),
        });
        result
    }

    async fn exchange(
        self: &Arc<Self>,
        head: &Parts,
        body: Bytes,
        arrived: Instant,
    ) -> Result<Response<Bytes>, Missed> {
        if let Some(reason) = self.circuit.is_open() {
            return Err(Missed::Skipped(reason));
        }
        let permit = self.in_flight.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Missed::Overloaded(self.config.max_in_flight))?;
        let request = self.request(head, body).map_err(|e| Missed::Failed(format!("{e:#}")))?;
        let (passthrough, timeout) = (self.clone(), self.config.timeout);
        // A backend may count on the platform's own patience: an exchange lasts as long.
        let end = arrived + timeout.max(PLATFORM_WAITS);
        // A task, so that neither our deadline nor a platform that hangs up cuts the exchange off.
        let exchange = tokio::spawn(async move {
            let _permit = permit;
            let answer = timeout_at(end, passthrough.send(request)).await;
            answer.unwrap_or(Err(Missed::Timeout(timeout)))
        });
        match timeout_at(arrived + timeout, exchange).await {
            Err(_) => Err(Missed::Timeout(timeout)),
            Ok(Err(_)) => Err(Missed::Failed("the bridge is stopping".into())),
            Ok(Ok(result)) => result,
        }
    }

    fn request(&self, head: &Parts, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
        let url = self.config.url.as_ref().context("there is no backend")?;
        let length = body.len();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.uri(head.uri.query().unwrap_or_default())?;
        let peer = head.extensions.get::<Peer>().map(|Peer(address)| address.ip());
        *request.headers_mut() = headers::to_backend(&head.headers, peer, length);
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Missed> {
        let response = self.client.request(request).await.map_err(|error| self.missed(&error))?;
        let (mut head, body) = response.into_parts();
        let body = match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(Missed::TooLarge),
            Err(error) => {
                return Err(Missed::Failed(format!("{:#}", anyhow::Error::from_boxed(error))));
            }
        };
        head.headers = headers::to_platform(&head.headers);
        Ok(Response::from_parts(head, body))
    }

    fn missed(&self, error: &ClientError) -> Missed {
        // Its own text only says that it is an error of the client.
        let reason = circuit::explain(error.source().unwrap_or(error));
        if !error.is_connect() {
            return Missed::Failed(reason);
        }
        self.circuit.open(&reason);
        Missed::Unreachable(reason)
    }

    /// Why callbacks are not forwarded now, if they are not.
    pub(crate) fn degraded(&self) -> Option<String> {
        self.circuit.is_open()
    }

    /// Connects once, for `check --connect`. The text says to whom, and what was wrong.
    pub(crate) async fn examine(config: &Config) -> Option<Result<String, String>> {
        let url = config.url.as_ref()?;
        let shown = config.shown();
        let result = async {
            circuit::connect(&mut connector(config)?, url.uri("")?).await?;
            anyhow::Ok(format!("{shown} accepts connections"))
        };
        Some(result.await.map_err(|error| format!("{shown} cannot be reached: {error:#}")))
    }
}

fn connector(config: &Config) -> anyhow::Result<Connector> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(config.connect_timeout()));
    http.set_keepalive(Some(Duration::from_secs(15)));
    let tls: ClientConfig =
        tls::client(config.ca_file.as_deref()).context("passthrough.ca_file")?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    Ok(builder.https_or_http().enable_http1().wrap_connector(http))
}
