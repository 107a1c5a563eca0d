//! A topic-created callback: parsed, made durable, and answered; or kept in quarantine. With
//! `ingress.answer = "delivered"` the answer also waits for the broker, for a while.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::{Call, Ingress, respond};
use crate::answer::Answer;
use crate::callback::{Callback, Malformed};
use crate::event::TopicCreated;
use crate::metrics::CallbackOutcome;
use crate::outbox::{Outcome, Quarantined, Receipt, Record, Refusal};
use crate::relay::SinkState;
use crate::requests::Entry;
use crate::spans::{Span, SpanKind};
use crate::trace::TraceContext;

/// What the outbox was given, and when its answer is due.
type Queued = Result<oneshot::Receiver<Outcome>, Refusal>;

/// How a callback ended that was answered OK.
type Kept = (CallbackOutcome, Option<Cow<'static, str>>);

impl Ingress {
    /// Takes the body of a callback whose URL says topic created, or (`has_command`) nothing.
    pub(super) async fn take(
        self: &Arc<Self>,
        call: &Call<'_>,
        has_command: bool,
        body: Result<Bytes, Answer>,
        entry: &mut Entry<'_>,
    ) -> Response {
        let body = match body {
            Ok(body) => body,
            Err(refusal) => return self.refuse_plainly(&refusal, entry),
        };
        // Only now: neither slow bodies nor other commands keep a topic's creation out.
        let Ok(permit) = self.in_flight.clone().try_acquire_owned() else {
            let overloaded = Answer::Overloaded("too many callbacks are being worked on");
            return self.refuse(&overloaded, "as many as ingress.max_in_flight", entry);
        };
        let parsed = match has_command {
            true => Callback::parse(&body),
            false => Err(Malformed("CallbackCommand is missing from the URL".into())),
        };
        let kept = match parsed {
            Ok(callback) => self.accept(call, callback, permit, entry).await,
            Err(malformed) => {
                let kept = self.quarantine(call, &body, malformed.to_string()).await;
                kept.and(Err(Answer::Malformed(malformed)))
            }
        };
        match kept {
            Ok((outcome, reason)) => {
                entry.ends(outcome.name(), reason);
                respond(&Answer::Ok)
            }
            Err(refusal) => self.refuse_plainly(&refusal, entry),
        }
    }

    async fn accept(
        self: &Arc<Self>,
        call: &Call<'_>,
        callback: Callback<'_>,
        permit: tokio::sync::OwnedSemaphorePermit,
        entry: &mut Entry<'_>,
    ) -> Result<Kept, Answer> {
        let event = TopicCreated::new(&call.verified, callback, &self.naming, call.now);
        let TopicCreated { id, accepted_at, .. } = event;
        let trace = call.trace.unwrap_or_else(|| TraceContext::of_event(id));
        entry.belongs_to(Some(trace));
        let traceparent = call.trace.map(|trace| trace.to_string());
        let (confirm, confirmed) = match self.config.delivered_by {
            None => (None, None),
            Some(by) => {
                let (confirm, confirmed) = oneshot::channel();
                (Some(confirm), Some((confirmed, by)))
            }
        };
        let record = Record { accepted_at, event: event.seal(), traceparent, confirm };
        let commit = self.commit(call);
        let queued = self.outbox.append(record);
        let (arrived, trace_id) = (call.arrived, trace.trace);
        let Some((confirmed, by)) = confirmed else {
            // The outbox counts them, because it also knows about those whose client has gone.
            let receipt = self.outcome(queued, arrived, commit).await?;
            tracing::debug!(%id, %trace_id, ?receipt, "took a callback");
            return Ok((outcome_of(receipt), None));
        };
        // A task, so that it is counted even if the client hangs up.
        let ingress = self.clone();
        let kept = tokio::spawn(async move {
            let receipt = ingress.outcome(queued, arrived, commit).await?;
            drop(permit); // it is durable: only the answer waits
            let kept = ingress.confirmed(receipt, confirmed, arrived, by, trace).await;
            if receipt == Receipt::Accepted {
                ingress.metrics.count(kept.0); // the outbox counts the others
            }
            tracing::debug!(%id, %trace_id, outcome = kept.0.name(), "took a callback");
            Ok(kept)
        });
        kept.await.unwrap_or(Err(Answer::Overloaded("the bridge is stopping")))
    }

    /// Waits for the broker to confirm what is durable, until `ingress.delivered_by`. If there is no hope, or
    /// many wait already, it does not: the broker must not decide what can be accepted.
    async fn confirmed(
        &self,
        receipt: Receipt,
        confirmed: oneshot::Receiver<()>,
        arrived: Instant,
        by: Duration,
        trace: TraceContext,
    ) -> Kept {
        let durable = |reason: Cow<'static, str>| (outcome_of(receipt), Some(reason));
        if let SinkState::Away(..) = *self.sink.borrow() {
            return durable("durable, not delivered yet: the sink is away".into());
        }
        let Ok(_waits) = self.confirming.try_acquire() else {
            return durable(
                "durable, not delivered yet: too many answers wait for the sink".into(),
            );
        };
        match timeout_at(arrived + by, confirmed).await {
            Ok(Ok(())) => {
                let took = arrived.elapsed().as_secs_f64();
                self.metrics.confirm_seconds.observe_traced(took, Some(trace));
                match receipt {
                    Receipt::Accepted => (CallbackOutcome::Delivered, None),
                    _ => (outcome_of(receipt), None),
                }
            }
            Ok(Err(_)) => durable("durable, and refused by the sink: it is a dead letter".into()),
            Err(_) => durable(Cow::Owned(format!(
                "durable, not delivered yet: the sink did not confirm within {} (ingress.delivered_by)",
                humantime::format_duration(by)
            ))),
        }
    }

    /// Keeps a body that could not be understood.
    pub(super) async fn quarantine(
        &self,
        call: &Call<'_>,
        body: &Bytes,
        reason: String,
    ) -> Result<Kept, Answer> {
        let query = call.verified.query();
        let commit = self.commit(call);
        let queued = self.outbox.quarantine(Quarantined {
            sdk_app_id: call.verified.sdk_app_id,
            client_ip: query.client_ip.as_deref().map(str::to_owned),
            client_platform: query.platform.as_deref().map(str::to_owned),
            received_at: call.now,
            reason,
            body: body.to_vec(),
        });
        self.outcome(queued, call.arrived, commit).await.map(|receipt| (outcome_of(receipt), None))
    }

    /// The span of the wait for the disk.
    fn commit(&self, call: &Call<'_>) -> Span {
        self.spans.start(SpanKind::Internal, "outbox commit", call.trace)
    }

    /// Waits for the outbox's answer, but not past the deadline. What commits later is still delivered.
    async fn outcome(
        &self,
        queued: Queued,
        arrived: Instant,
        mut commit: Span,
    ) -> Result<Receipt, Answer> {
        let outcome = self.wait_for(queued, arrived).await;
        match &outcome {
            Ok(receipt) => commit.set("topic_bridge.outcome", outcome_of(*receipt).name()),
            Err(answer) => commit.fail(CallbackOutcome::Overloaded.name(), answer.info()),
        }
        outcome
    }

    async fn wait_for(&self, queued: Queued, arrived: Instant) -> Result<Receipt, Answer> {
        let queued_at = Instant::now();
        let refusal = match queued {
            Err(refusal) => refusal,
            Ok(answer) => match timeout_at(arrived + self.config.ack_deadline, answer).await {
                Ok(Ok(Ok(receipt))) => return Ok(receipt),
                Ok(Ok(Err(refusal))) => refusal,
                Ok(Err(_)) => Refusal::Poisoned, // the writer is gone
                Err(_) => return Err(Answer::Overloaded(self.what_was_late(arrived, queued_at))),
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

    /// What took most of the time up to the deadline.
    fn what_was_late(&self, arrived: Instant, queued_at: Instant) -> &'static str {
        let waited = queued_at.elapsed();
        if queued_at - arrived > waited {
            "the request took so long to arrive that no time was left for the disk"
        } else if self.outbox.longest_commit() * 2 >= waited {
            "the disk did not answer in time"
        } else {
            "this host was too busy to answer in time"
        }
    }
}

fn outcome_of(receipt: Receipt) -> CallbackOutcome {
    match receipt {
        Receipt::Accepted => CallbackOutcome::Accepted,
        Receipt::Duplicate => CallbackOutcome::Duplicate,
        Receipt::Quarantined => CallbackOutcome::Malformed,
    }
}
