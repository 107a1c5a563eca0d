//! The span of each message on its way to the broker: from the hand-over to the verdict, one for each attempt, with
//! the attributes of OpenTelemetry's semantic conventions for messaging. The message carries the context of its
//! span, so that a consumer's spans follow it.

use std::borrow::Cow;
use std::time::SystemTime;

use super::Outgoing;
use super::session::Broker;
use crate::spans::{Span, SpanKind, Spans, attribute};
use crate::time::{Timestamp, precisely_now};
use crate::trace::TraceContext;
use crate::verdict::Verdict;

/// Where a message goes.
pub(super) struct Destination {
    /// As the conventions call the broker.
    pub(super) system: &'static str,
    /// What the broker's users call publishing.
    pub(super) operation: &'static str,
    pub(super) name: String,
    /// Where the name holds ids: the same without them.
    pub(super) template: Option<String>,
    /// `host:port`, the first of several.
    pub(super) server: Option<String>,
}

/// One message's.
struct Send {
    parent: Option<TraceContext>,
    accepted_at: Timestamp,
    span: Span,
}

pub(super) struct Sends {
    spans: Spans,
    began: SystemTime,
    all: Vec<Send>,
}

impl Sends {
    /// Starts the span of each message, and puts its context into the message.
    pub(super) fn begin(
        spans: &Spans,
        broker: &impl Broker,
        messages: &mut [Outgoing<'_>],
    ) -> Option<Self> {
        if !spans.are_on() {
            return None;
        }
        let all = messages.iter_mut().map(|message| {
            let parent = message.brought;
            let destination = broker.destination(message.event);
            let place = destination.template.as_ref().unwrap_or(&destination.name);
            let name = format!("{} {place}", destination.operation);
            let mut span = spans.start(SpanKind::Producer, name, parent);
            if let Some(context) = span.context() {
                message.traceparent = Cow::Owned(context.to_string());
            }
            if span.is_recording() {
                describe(&mut span, destination, message);
            }
            Send { parent, accepted_at: message.accepted_at, span }
        });
        let all = all.collect();
        Some(Sends { spans: spans.clone(), began: precisely_now(), all })
    }

    /// Ends them, with what came of each.
    pub(super) fn end(self, verdicts: &[Verdict]) {
        let Sends { spans, began, all } = self;
        for (Send { parent, accepted_at, mut span }, verdict) in all.into_iter().zip(verdicts) {
            match verdict.reason() {
                None => spans.note("outbox wait", parent, accepted_at, began),
                Some(reason) => span.fail(reason.kind.name(), reason.text.clone()),
            }
        }
    }
}

fn describe(span: &mut Span, destination: Destination, message: &Outgoing<'_>) {
    let Destination { system, operation, name, template, server } = destination;
    span.set(attribute::MESSAGING_SYSTEM, system);
    span.set(attribute::MESSAGING_OPERATION_NAME, operation);
    span.set(attribute::MESSAGING_OPERATION_TYPE, "send");
    span.set(attribute::MESSAGING_DESTINATION_NAME, name);
    if let Some(template) = template {
        span.set(attribute::MESSAGING_DESTINATION_TEMPLATE, template);
    }
    if let Some((host, port)) = server.as_deref().and_then(|server| server.rsplit_once(':')) {
        span.set(attribute::SERVER_ADDRESS, host.to_owned());
        if let Ok(port) = port.parse::<u16>() {
            span.set(attribute::SERVER_PORT, i64::from(port));
        }
    }
    let event = message.event;
    span.set(attribute::MESSAGING_MESSAGE_ID, message.id());
    span.set(attribute::CLOUDEVENTS_EVENT_ID, message.id());
    span.set(attribute::CLOUDEVENTS_EVENT_SOURCE, event.source.clone());
    span.set(attribute::CLOUDEVENTS_EVENT_TYPE, event.event_type.clone());
}
