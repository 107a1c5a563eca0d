//! The public listener: receives callbacks, and answers once they are durable. First the head is decided
//! (which app, is it authentic, which command), then the body.
//!
//! The platform waits two seconds and does not resend, so every wait here has a deadline. An event that
//! was queued belongs to the outbox, whether or not a client still waits for the answer.

mod apps;
mod body;
mod config;
mod warnings;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::answer::Answer;
use crate::callback::{Callback, Malformed, Query, TOPIC_CREATED, command_label};
use crate::event::{self, TopicCreated};
use crate::message::traceparent;
use crate::metrics::{CallbackOutcome, Metrics};
use crate::outbox::{Outbox, Outcome, Quarantined, Receipt, Record, Refusal};
use crate::signature::{Verified, verify};
use crate::time::Timestamp;
pub(crate) use config::Config;
use warnings::ThrottledWarnings;

pub(crate) struct Ingress {
    config: Config,
    naming: event::Config,
    outbox: Outbox,
    metrics: Arc<Metrics>,
    /// Bodies of authentic callbacks that are being read.
    reading: Semaphore,
    /// Callbacks that wait for their commit.
    in_flight: Semaphore,
    warnings: ThrottledWarnings,
}

impl Ingress {
    pub(crate) fn new(
        config: Config,
        naming: event::Config,
        outbox: Outbox,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let reading = Semaphore::new(config.max_connections);
        let in_flight = Semaphore::new(config.max_in_flight);
        let warnings = ThrottledWarnings::default();
        Arc::new(Ingress { config, naming, outbox, metrics, reading, in_flight, warnings })
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
    let arrived = Instant::now();
    let answer = ingress.answer(request, arrived, Timestamp::now()).await;
    ingress.metrics.ack_seconds.observe(arrived.elapsed().as_secs_f64());
    respond(&answer)
}

async fn wrong_method(State(ingress): State<Arc<Ingress>>, request: Request) -> Response {
    ingress.read_out(request).await;
    respond(&Answer::MethodNotAllowed)
}

async fn wrong_path(State(ingress): State<Arc<Ingress>>, request: Request) -> Response {
    ingress.read_out(request).await;
    respond(&Answer::NotFound)
}

impl Ingress {
    /// Reads the body and discards it: closing with unread data would lose the answer.
    async fn read_out(&self, request: Request) {
        let _ = self.read(request.into_body(), 0, false, Instant::now()).await;
    }

    /// Refuses a request by its head. The body is discarded as it is read.
    async fn refuse(
        &self,
        refusal: Answer,
        body: Body,
        expects_word: bool,
        arrived: Instant,
    ) -> Answer {
        self.tell(&refusal);
        let _ = self.read(body, 0, expects_word, arrived).await;
        refusal
    }

    async fn read(
        &self,
        body: Body,
        limit: u64,
        expects_word: bool,
        arrived: Instant,
    ) -> Result<Bytes, Answer> {
        body::read(body, limit, expects_word, arrived + self.config.request_timeout).await
    }

    async fn answer(&self, request: Request, arrived: Instant, now: Timestamp) -> Answer {
        let (head, body) = request.into_parts();
        let expects_word = head.headers.contains_key(EXPECT);
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let verified = match verify(
            &self.config.apps,
            query,
            now.as_millis() / 1000,
            self.config.max_skew_seconds,
        ) {
            Ok(verified) => verified,
            Err(refusal) => return self.refuse(refusal, body, expects_word, arrived).await,
        };
        self.metrics.last_callback_timestamp_seconds.set(now.as_millis() as f64 / 1000.0);
        let Ok(reading) = self.reading.try_acquire() else {
            let overloaded = Answer::Overloaded("too many callbacks are being read");
            return self.refuse(overloaded, body, expects_word, arrived).await;
        };
        let command = verified.query().command.as_deref();
        let is_other = command.is_some_and(|command| command != TOPIC_CREATED);
        let body = self.read(body, self.config.max_body_bytes, expects_word, arrived).await;
        drop(reading);
        if is_other && !matches!(body, Err(Answer::Timeout)) {
            // Even if it is too large: nobody is going to read it, and refusing a *before* callback would
            // block the user who caused it.
            self.metrics.count(CallbackOutcome::Ignored);
            self.metrics.count_ignored(command_label(command.unwrap_or_default()));
            return Answer::Ok;
        }
        let body = match body {
            Ok(body) => body,
            Err(refusal) => {
                self.tell(&refusal);
                return refusal;
            }
        };
        // Only now: neither slow bodies nor other commands keep a topic's creation out.
        let Ok(_permit) = self.in_flight.try_acquire() else {
            let overloaded = Answer::Overloaded("too many callbacks are being worked on");
            self.tell(&overloaded);
            return overloaded;
        };
        let parsed = match command {
            Some(_) => Callback::parse(&body),
            None => Err(Malformed("CallbackCommand is missing from the URL".into())),
        };
        let answer_by = arrived + self.config.ack_deadline;
        match parsed {
            Ok(callback) => {
                let event = TopicCreated::new(&verified, callback, &self.naming, now);
                let header =
                    head.headers.get("traceparent").and_then(|header| header.to_str().ok());
                let trace = header.and_then(traceparent).map(str::to_owned);
                self.accept(&event, trace, answer_by).await
            }
            Err(malformed) => self.quarantine(&verified, &body, malformed, now, answer_by).await,
        }
    }

    async fn accept(
        &self,
        event: &TopicCreated<'_>,
        traceparent: Option<String>,
        answer_by: Instant,
    ) -> Answer {
        let TopicCreated { id, accepted_at, .. } = *event;
        let queued = self.outbox.append(Record { accepted_at, event: event.seal(), traceparent });
        match outcome(queued, answer_by).await {
            // The outbox counts them, because it also knows about those whose client has gone.
            Ok(receipt) => {
                tracing::debug!(%id, ?receipt, "took a callback");
                Answer::Ok
            }
            Err(overloaded) => {
                self.tell(&overloaded);
                overloaded
            }
        }
    }

    async fn quarantine(
        &self,
        verified: &Verified<'_>,
        body: &Bytes,
        malformed: Malformed,
        received_at: Timestamp,
        answer_by: Instant,
    ) -> Answer {
        let query = verified.query();
        let queued = self.outbox.quarantine(Quarantined {
            sdk_app_id: verified.sdk_app_id,
            client_ip: query.client_ip.as_deref().map(str::to_owned),
            client_platform: query.platform.as_deref().map(str::to_owned),
            received_at,
            reason: malformed.to_string(),
            body: body.to_vec(),
        });
        let answer = match outcome(queued, answer_by).await {
            Ok(_) => Answer::Malformed(malformed),
            Err(overloaded) => overloaded,
        };
        self.tell(&answer);
        answer
    }

    /// Counts a refusal, and warns the operator now and then.
    fn tell(&self, answer: &Answer) {
        let outcome = match answer {
            Answer::Ok | Answer::NotFound | Answer::MethodNotAllowed => return,
            Answer::UnknownApp => CallbackOutcome::UnknownApp,
            Answer::Unauthenticated(_) => CallbackOutcome::Unauthenticated,
            Answer::Stale { .. } => CallbackOutcome::Stale,
            Answer::Malformed(_) => CallbackOutcome::Malformed,
            Answer::TooLarge { .. } => CallbackOutcome::TooLarge,
            Answer::Timeout => CallbackOutcome::Timeout,
            Answer::Overloaded(_) => CallbackOutcome::Overloaded,
        };
        self.metrics.count(outcome);
        self.warnings.warn(outcome, &answer.info());
    }
}

/// Waits for the outbox's answer, but not past the deadline. What commits later is still delivered.
async fn outcome(
    queued: Result<oneshot::Receiver<Outcome>, Refusal>,
    answer_by: Instant,
) -> Result<Receipt, Answer> {
    let refusal = match queued {
        Err(refusal) => refusal,
        Ok(answer) => match timeout_at(answer_by, answer).await {
            Ok(Ok(Ok(receipt))) => return Ok(receipt),
            Ok(Ok(Err(refusal))) => refusal,
            Ok(Err(_)) => Refusal::Poisoned, // the writer is gone
            Err(_) => return Err(Answer::Overloaded("the disk did not answer in time")),
        },
    };
    Err(Answer::Overloaded(match refusal {
        Refusal::QueueFull => "too many callbacks wait for the disk",
        Refusal::Full => "the outbox is full",
        Refusal::QuarantineFull => "the quarantine is full",
        Refusal::LogHeld => "a reader holds the outbox's log",
        Refusal::DiskFull => "the disk is full",
        Refusal::Locked => "the outbox is locked",
        Refusal::Poisoned => "the outbox has failed",
    }))
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
        Answer::Timeout | Answer::TooLarge { .. } => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}
