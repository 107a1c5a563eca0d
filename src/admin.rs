//! The private listener: truthful health, metrics, and the event stream, which shows every event that was
//! durably accepted, whichever sink is in use. Reading takes no authentication. Health and metrics need neither a
//! share of the readers' memory nor their connection to the outbox. An operator's acts on the outbox are for this host
//! alone, or for who has a token.

mod acts;
mod ask;
mod budget;
mod chunk;
mod events;
mod feed;
mod host;
mod kept;
mod page;
mod permit;
mod requests;
mod schema;
mod scrape;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::sync::watch;

pub(crate) use self::acts::Acts;
pub(crate) use self::budget::Budget;
pub(crate) use self::events::Events;
pub(crate) use self::feed::Readers;
pub(crate) use self::permit::token;
use crate::config::Keys;
use crate::config::value::{address, count, file, size};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::outbox::{Outbox, Reader};
use crate::passthrough::Passthrough;
use crate::relay::{Refusals, SinkState};
use crate::requests::Requests;
use crate::server::{Phase, Spare};
use crate::verdict::Kind;

const ROUTES: &str = "there are /, /livez, /readyz, /metrics, /events, /requests, /dead-letters, /quarantine, \
     /schema/ and /asyncapi.yaml, and POST /outbox/retry, /outbox/drop, /outbox/replay and /outbox/import";

/// `[admin]`.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) max_connections: usize,
    pub(crate) max_buffer_bytes: u64,
    /// Whose token changes the outbox.
    pub(crate) token_file: Option<PathBuf>,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        Config {
            listen: keys.read("admin.listen", address),
            max_connections: keys.read("admin.max_connections", count(1_000_000)),
            max_buffer_bytes: keys.read("admin.max_buffer_bytes", size(1 << 30)),
            token_file: keys.read_optional("admin.token_file", |value| {
                let path = file(value)?;
                token(&path).map(|_| path)
            }),
        }
    }
}

/// What the private listener's handlers share.
pub(crate) struct Admin {
    pub(crate) outbox: Outbox,
    pub(crate) reader: Reader,
    pub(crate) events: Events,
    pub(crate) readers: Readers,
    pub(crate) acts: Acts,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Log,
    pub(crate) sink: watch::Receiver<SinkState>,
    pub(crate) refusals: watch::Receiver<Option<Refusals>>,
    pub(crate) passthrough: Option<Arc<Passthrough>>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) sink_name: &'static str,
    pub(crate) max_bytes: u64,
    /// The public listener's phase: not ready from the first sign of stopping.
    pub(crate) ingress: watch::Receiver<Phase>,
    /// Whether this listener is on a loopback address, where only local names are served.
    pub(crate) is_loopback: bool,
}

impl Admin {
    pub(crate) fn router(self) -> Router {
        let policy = page::policy();
        let router = schema::routes(Router::new())
            .route("/", get(async move || page::page(&policy)))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(scrape::metrics))
            .route("/events", get(events::events))
            .route("/requests", get(requests::requests))
            .route("/dead-letters", get(kept::dead_letters))
            .route("/quarantine", get(kept::quarantine))
            .merge(acts::routes())
            .fallback(async || refuse(StatusCode::NOT_FOUND, ROUTES));
        let router = router.layer(map_response(as_it_is_named));
        let router = if self.is_loopback { router.layer(from_fn(local_only)) } else { router };
        router.layer(from_fn(keep_for_probes)).with_state(Arc::new(self))
    }
}

/// On a connection over the limit only the health is shown, so that no number of readers hides it.
async fn keep_for_probes(request: Request, next: Next) -> Response {
    let is_probe = matches!(request.uri().path(), "/livez" | "/readyz");
    if request.extensions().get::<Spare>().is_some() && !is_probe {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many connections");
    }
    next.run(request).await
}

/// A browser must not take what a stranger has sent for anything but what this listener calls it.
async fn as_it_is_named(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn local_only(request: Request, next: Next) -> Response {
    match host::check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => refuse(StatusCode::FORBIDDEN, &error),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    let body = serde_json::json!({ "error": error }).to_string();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    ingress: Part,
    outbox: Part,
    sink: Part,
    /// Where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    passthrough: Option<Part>,
}

#[derive(Serialize)]
struct Part {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    figures: serde_json::Map<String, serde_json::Value>,
}

impl Part {
    fn new(state: &'static str, reason: Option<String>) -> Self {
        Part { state, reason, figures: serde_json::Map::new() }
    }

    fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }
}

/// 200 while callbacks can be accepted durably. A sink that is away only degrades: if the platform were
/// refused because of it, its callbacks would be lost.
async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let ingress = match *admin.ingress.borrow() {
        Phase::Serving => Part::new("ready", None),
        _ => Part::new("not_ready", Some("the bridge is stopping".into())),
    };
    let outbox = match admin.outbox.refuses() {
        None => Part::new("ready", None),
        refusal => Part::new("not_ready", refusal),
    };
    let outbox = outbox
        .with("pending", admin.outbox.pending())
        .with("bytes", admin.outbox.bytes())
        .with("max_bytes", admin.max_bytes)
        .with("dead_letters", admin.outbox.dead_letters())
        .with("quarantined", admin.outbox.quarantined());
    let refusals = admin.refusals.borrow().clone();
    let sink = match &*admin.sink.borrow() {
        SinkState::Up => match refusals {
            None => Part::new("ready", None),
            Some(Refusals { count, reason }) => {
                Part::new("degraded", Some(refused(count, &reason)))
            }
        },
        SinkState::Unknown => Part::new("degraded", Some("not asked yet".into())),
        SinkState::Away(reason, Kind::Unroutable) => {
            let waiting = admin.outbox.pending();
            Part::new("degraded", Some(format!("unroutable: {reason}; {waiting} events wait")))
        }
        SinkState::Away(reason, _) => Part::new("degraded", Some(reason.clone())),
    };
    let sink = sink.with("name", admin.sink_name);

    let passthrough = admin.passthrough.as_ref().map(|passthrough| match passthrough.degraded() {
        None => Part::new("ready", None),
        Some(reason) => {
            Part::new("degraded", Some(format!("the backend cannot be reached: {reason}")))
        }
    });

    let parts = [Some(&ingress), Some(&outbox), Some(&sink), passthrough.as_ref()];
    let has = |state| parts.iter().flatten().any(|part| part.state == state);
    let (code, status) = if has("not_ready") {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    } else if has("degraded") {
        (StatusCode::OK, "degraded")
    } else {
        (StatusCode::OK, "ready")
    };
    let body = serde_json::to_string(&Readiness { status, ingress, outbox, sink, passthrough })
        .expect("texts and numbers always encode");
    (code, [(CONTENT_TYPE, "application/json")], body + "\n").into_response()
}

fn refused(count: u64, reason: &str) -> String {
    let events = if count == 1 {
        "the last event was".into()
    } else {
        format!("the last {count} events were")
    };
    format!(
        "{events} refused for good: {reason}; kept as dead letters: mend the cause, then `topic-bridge outbox retry`"
    )
}
