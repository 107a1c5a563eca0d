//! An outgoing message, the same for every broker: each converts it to its own protocol.

use std::borrow::Cow;

use crate::message::{Encoding, Envelope};
use crate::outbox::Stored;
use crate::time::Timestamp;
use crate::trace::TraceContext;

pub(super) struct Outgoing<'e> {
    pub(super) event: &'e Envelope,
    pub(super) accepted_at: Timestamp,
    pub(super) content_type: &'static str,
    /// The trace that the callback brought or began, if it did.
    pub(super) brought: Option<TraceContext>,
    pub(super) traceparent: Cow<'e, str>,
    /// In binary mode, the headers, without the content type.
    pub(super) attributes: Vec<(&'static str, Cow<'e, str>)>,
    pub(super) body: Cow<'e, str>,
}

impl<'e> Outgoing<'e> {
    pub(super) fn all(events: &'e [Stored], encoding: Encoding) -> Vec<Self> {
        events.iter().map(|stored| Outgoing::new(stored, encoding)).collect()
    }

    pub(super) fn id(&self) -> String {
        self.event.id.to_string()
    }

    pub(super) fn new(stored: &'e Stored, encoding: Encoding) -> Self {
        let event = &stored.event;
        Outgoing {
            event,
            accepted_at: stored.accepted_at,
            content_type: encoding.content_type(),
            brought: stored.brought(),
            traceparent: match &stored.traceparent {
                Some(traceparent) => Cow::Borrowed(traceparent),
                None => Cow::Owned(stored.trace().to_string()),
            },
            attributes: match encoding {
                Encoding::Structured => Vec::new(),
                Encoding::Binary => event.attributes().into(),
            },
            body: event.body(encoding),
        }
    }
}
