//! The public listener: receives callbacks, and answers once they are durable. First the head is decided
//! (which app, is it authentic, which command), then the body.
//!
//! The platform waits two seconds and does not resend, so every wait here has a deadline. An event that
//! was queued belongs to the outbox, whether or not a client still waits for the answer.

mod apps;
mod body;
mod config;
mod keep;
mod others;
mod span;
mod tokens;
mod warnings;

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use hyper::body::Body as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::answer::Answer;
use crate::callback::{Query, TOPIC_CREATED};
use crate::event;
use crate::metrics::{CallbackOutcome, Metrics};
use crate::outbox::Outbox;
use crate::passthrough::Passthrough;
use crate::relay::SinkState;
use crate::requests::{Entry, Requests};
use crate::server::Peer;
use crate::signature::{Refused, Verified, verify};
use crate::spans::Spans;
use crate::time::Timestamp;
use crate::trace::TraceContext;
pub(crate) use apps::AppConfig;
pub(crate) use config::Config;
pub(crate) use tokens::Apps;
use warnings::ThrottledWarnings;

/// What the public listener works with.
pub(crate) struct Links {
    pub(crate) apps: Arc<Apps>,
    pub(crate) outbox: Outbox,
    pub(crate) sink: watch::Receiver<SinkState>,
    pub(crate) passthrough: Option<Arc<Passthrough>>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spans: Spans,
    /// Where an operator sees why requests are refused.
    pub(crate) see: String,
}

pub(crate) struct Ingress {
    config: Config,
    naming: event::Config,
    apps: watch::Receiver<Arc<[crate::signature::App]>>,
    outbox: Outbox,
    sink: watch::Receiver<SinkState>,
    passthrough: Option<Arc<Passthrough>>,
    requests: Arc<Requests>,
    metrics: Arc<Metrics>,
    spans: Spans,
    /// Bodies of authentic callbacks that are being read.
    reading: Semaphore,
    /// Callbacks that wait for their commit.
    in_flight: Arc<Semaphore>,
    /// Durable callbacks whose answer waits for the broker.
    confirming: Arc<Semaphore>,
    warnings: ThrottledWarnings,
}

impl Ingress {
    pub(crate) fn new(config: Config, naming: event::Config, links: Links) -> Arc<Self> {
        let Links { apps, outbox, sink, passthrough, requests, metrics, spans, see } = links;
        Arc::new(Ingress {
            naming,
            apps: apps.current(),
            outbox,
            sink,
            passthrough,
            requests,
            metrics,
            spans,
            reading: Semaphore::new(config.max_connections),
            in_flight: Semaphore::new(config.max_in_flight).into(),
            confirming: Semaphore::new(config.max_in_flight).into(),
            warnings: ThrottledWarnings::new(see),
            config,
        })
    }

    pub(crate) fn router(self: Arc<Self>) -> Router {
        let path = self.config.path.clone();
        Router::new()
            .route(&path, post(take))
            .method_not_allowed_fallback(wrong_method)
            .fallback(wrong_path)
            .with_state(self)
    }

    /// The answer to a connection over `ingress.max_connections`.
    pub(crate) fn turned_away() -> String {
        Answer::Overloaded("too many connections").body().into_owned()
    }

    pub(crate) fn count_turned_away(&self) {
        self.metrics.count(CallbackOutcome::Overloaded);
        self.warnings.warn(CallbackOutcome::Overloaded, "too many connections");
    }
}

async fn take(State(ingress): State<Arc<Ingress>>, request: Request) -> Response {
    let (arrived, now) = (Instant::now(), Timestamp::now());
    let mut entry = ingress.enter(&request, now);
    let response = ingress.answer(request, arrived, now, &mut entry).await;
    ingress.metrics.ack_seconds.observe_traced(arrived.elapsed().as_secs_f64(), entry.trace());
    response
}

async fn wrong_method(State(ingress): State<Arc<Ingress>>, request: Request) -> Response {
    let reason =
        format!("the method is {:.16}, the platform sends POST", request.method().as_str());
    ingress.not_a_callback(request, &Answer::MethodNotAllowed, "method_not_allowed", reason).await
}

async fn wrong_path(State(ingress): State<Arc<Ingress>>, request: Request) -> Response {
    let (path, expected) = (request.uri().path(), &ingress.config.path);
    let reason = format!("the path is {path:.64}, ingress.path is {expected}");
    ingress.not_a_callback(request, &Answer::NotFound, "not_found", reason).await
}

/// What is read of a request before its body.
struct Call<'c> {
    head: &'c Parts,
    verified: Verified<'c>,
    arrived: Instant,
    now: Timestamp,
    /// What its span belongs to, or else what it brought.
    trace: Option<TraceContext>,
}

/// A body that is still to be read.
struct Unread {
    body: Body,
    expects_word: bool,
    deadline: Instant,
}

impl Unread {
    fn of(head: &Parts, body: Body, deadline: Instant) -> Self {
        Unread { body, expects_word: head.headers.contains_key(EXPECT), deadline }
    }

    async fn read(self, limit: u64, entry: &mut Entry<'_>) -> Result<Bytes, Answer> {
        let mut size = 0;
        entry.announces(self.body.size_hint().exact());
        let read = body::read(self.body, limit, self.expects_word, self.deadline, &mut size).await;
        entry.has_body(size);
        read
    }

    /// Reads it to its end and discards it: closing with unread data would lose the answer.
    async fn discard(self, entry: &mut Entry<'_>) {
        let _ = self.read(0, entry).await; // whatever it is, it is refused already
    }
}

impl Ingress {
    /// Notes a request in the list of the last ones.
    fn enter(&self, request: &Request, now: Timestamp) -> Entry<'_> {
        self.requests.enter(now, request.extensions().get::<Peer>().map(|Peer(address)| *address))
    }

    async fn not_a_callback(
        &self,
        request: Request,
        answer: &Answer,
        outcome: &'static str,
        reason: String,
    ) -> Response {
        let mut entry = self.enter(&request, Timestamp::now());
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        entry.asks(command_of(&query), query.sdk_app_id);
        let deadline = Instant::now() + self.config.time_to_read();
        Unread::of(&head, body, deadline).discard(&mut entry).await;
        entry.ends(outcome, Some(reason.into()));
        respond(answer)
    }

    async fn answer(
        self: &Arc<Self>,
        request: Request,
        arrived: Instant,
        now: Timestamp,
        entry: &mut Entry<'_>,
    ) -> Response {
        let (head, body) = request.into_parts();
        let unread = Unread::of(&head, body, arrived + self.config.time_to_read());
        let query = Query::parse(head.uri.query().unwrap_or_default());
        entry.asks(command_of(&query), query.sdk_app_id);
        let apps = self.apps.borrow().clone();
        let seconds = now.as_millis() / 1000;
        let verified = match verify(&apps, query, seconds, self.config.max_skew_seconds) {
            Ok(verified) => verified,
            Err(Refused { answer, reason }) => {
                let response = self.refuse(&answer, reason, entry);
                unread.discard(entry).await;
                return response;
            }
        };
        self.metrics.last_callback_timestamp_seconds.set(now.as_millis() as f64 / 1000.0);
        let (mut span, trace) = self.span(&head, entry);
        let call = Call { head: &head, verified, arrived, now, trace };
        let response = self.answer_authentic(&call, unread, entry).await;
        span::answered(&mut span, &response, entry);
        response
    }

    async fn answer_authentic(
        self: &Arc<Self>,
        call: &Call<'_>,
        unread: Unread,
        entry: &mut Entry<'_>,
    ) -> Response {
        let Ok(reading) = self.reading.try_acquire() else {
            let overloaded = Answer::Overloaded("too many callbacks are being read");
            let response = self.refuse(&overloaded, "as many as ingress.max_connections", entry);
            unread.discard(entry).await;
            return response;
        };
        let body = unread.read(self.config.max_body_bytes, entry).await;
        drop(reading);
        match call.verified.query().command.as_deref() {
            Some(command) if command != TOPIC_CREATED => {
                self.other(call, command, body, entry).await
            }
            command => self.take(call, command.is_some(), body, entry).await,
        }
    }

    /// Counts a refusal, notes it with its reason, and warns the operator now and then.
    fn refuse(
        &self,
        answer: &Answer,
        reason: impl Into<Cow<'static, str>>,
        entry: &mut Entry<'_>,
    ) -> Response {
        let reason = reason.into();
        if let Some(outcome) = outcome_of(answer) {
            self.metrics.count(outcome);
            self.warnings.warn(outcome, &reason);
            entry.ends(outcome.name(), Some(reason));
        }
        respond(answer)
    }

    /// The same where the answer says it all.
    fn refuse_plainly(&self, answer: &Answer, entry: &mut Entry<'_>) -> Response {
        let reason = match answer {
            Answer::Timeout => entry.of_body(self.config.time_to_read()),
            answer => answer.info(),
        };
        self.refuse(answer, reason, entry)
    }
}

/// The outcome of a refused callback.
fn outcome_of(answer: &Answer) -> Option<CallbackOutcome> {
    Some(match answer {
        Answer::Ok | Answer::NotFound | Answer::MethodNotAllowed => return None,
        Answer::UnknownApp => CallbackOutcome::UnknownApp,
        Answer::Unauthenticated(_) => CallbackOutcome::Unauthenticated,
        Answer::Stale { .. } => CallbackOutcome::Stale,
        Answer::Malformed(_) | Answer::Broken => CallbackOutcome::Malformed,
        Answer::TooLarge { .. } => CallbackOutcome::TooLarge,
        Answer::Timeout => CallbackOutcome::Timeout,
        Answer::Overloaded(_) => CallbackOutcome::Overloaded,
    })
}

/// The command for the list of the last requests. The usual one needs no copy.
fn command_of(query: &Query<'_>) -> Option<Cow<'static, str>> {
    query.command.as_deref().map(|command| match command == TOPIC_CREATED {
        true => Cow::Borrowed(TOPIC_CREATED),
        false => Cow::Owned(command.to_owned()),
    })
}

fn respond(answer: &Answer) -> Response {
    let (status, _) = answer.codes();
    let mut response = Response::new(Body::from(answer.body()));
    *response.status_mut() = StatusCode::from_u16(status).expect("every answer has a valid status");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match answer {
        Answer::Overloaded(_) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Answer::MethodNotAllowed => {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        Answer::Timeout | Answer::TooLarge { .. } | Answer::Broken => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}
