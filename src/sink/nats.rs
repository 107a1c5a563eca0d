//! NATS JetStream. Each event is published with its id as `Nats-Msg-Id`, so that the stream stores a
//! repeat only once, and counts as delivered when the stream has acknowledged it.
//!
//! Each connection is given the events in order and without a gap, from the first that is not
//! acknowledged on, and is never used again once it was lost. So what comes first of each event comes
//! in order, though a lost connection may still bring what its server had received by then.

mod connection;
mod look;
mod stream;
mod verdict;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Kind, Reason, Verdict};
use crate::config::{self, Config};
use crate::event::{DATA_CONTENT_TYPE, Encoding, Envelope};
use crate::outbox::Stored;
use connection::Link;
use verdict::{confirmed, judge, lost, not_in_time};

pub(super) use look::{examine, tail};

/// A subject longer than this is near the length of line at which a server cuts the connection.
const MAX_SUBJECT_BYTES: usize = 2048;

/// Attributes of a CloudEvent, `datacontenttype` among them, are headers with this prefix.
const PREFIX: &str = "ce-";

const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

pub(crate) struct Nats {
    config: config::Nats,
    encoding: Encoding,
    confirm_timeout: Duration,
    link: Option<Link>,
    /// What is doubtful about the stream and was said already.
    warned: Vec<String>,
}

impl Nats {
    #[expect(clippy::unnecessary_wraps, reason = "other sinks can fail here")]
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Nats {
            config: config.nats.clone(),
            encoding: config.encoding,
            confirm_timeout: config.relay.confirm_timeout,
            link: None,
            warned: Vec::new(),
        })
    }

    pub(super) async fn ready(&mut self) -> Result<(), Reason> {
        if let Some(link) = &mut self.link {
            link.is_stream_checked = false; // it may have been deleted since
        }
        self.prepare().await.map(|_| ())
    }

    pub(super) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let link = match self.prepare().await {
            Ok(link) => link,
            Err(reason) => return vec![Verdict::Away(reason); events.len()],
        };
        let mut watch = link.watch.clone();
        let deadline = Instant::now() + self.confirm_timeout;
        let mut verdicts = Vec::with_capacity(events.len());
        for handed in self.hand_over(events, deadline).await {
            verdicts.push(match handed {
                Ok(ack) => confirmed(ack, &mut watch, deadline).await,
                Err(verdict) => verdict,
            });
        }
        // After any of these the connection is not to be trusted: what it still holds must not go out.
        let is_lost = verdicts
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Away(reason) if is_the_end(reason)));
        if is_lost {
            self.link = None;
        } else if let Some(link) = &mut self.link {
            let is_well = verdicts.iter().all(|verdict| *verdict == Verdict::Delivered);
            link.is_stream_checked = is_well;
        }
        verdicts
    }

    pub(super) async fn close(self) {
        if let Some(link) = self.link {
            // Whatever was to be confirmed is settled by now: this only lets the last bytes out.
            let _ = timeout(Duration::from_secs(1), link.context.client().flush()).await;
        }
    }

    /// A connection on which the stream is as it should be.
    async fn prepare(&mut self) -> Result<&Link, Reason> {
        let mut link = match self.link.take().filter(Link::is_up) {
            Some(link) => link,
            None => Link::connect(&self.config, self.confirm_timeout).await?,
        };
        if !link.is_stream_checked {
            let checked = stream::ensure(&link.context, &self.config).await;
            let checked = checked.map_err(|reason| link.watch.complaint().unwrap_or(reason));
            let doubts = match checked {
                Ok(doubts) => doubts,
                Err(reason) if is_the_end(&reason) => return Err(reason),
                Err(reason) => {
                    self.link = Some(link);
                    return Err(reason);
                }
            };
            for doubt in doubts.iter().filter(|doubt| !self.warned.contains(doubt)) {
                tracing::warn!(stream = self.config.stream, "{doubt}");
            }
            self.warned = doubts;
            link.is_stream_checked = true;
        }
        Ok(self.link.insert(link))
    }

    /// Gives the client all events. An error is a verdict already.
    async fn hand_over(
        &self,
        events: &[Stored],
        deadline: Instant,
    ) -> Vec<Result<PublishAckFuture, Verdict>> {
        let link = self.link.as_ref().expect("there was one a moment ago");
        let mut handed = Vec::with_capacity(events.len());
        for event in events {
            let ack = self.publish(link, event, deadline).await;
            let is_stuck = matches!(ack, Err(Verdict::Away(_)));
            handed.push(ack);
            if is_stuck {
                break;
            }
        }
        // What follows an event that has to wait must not overtake it.
        if let Some(Err(last @ Verdict::Away(_))) = handed.last() {
            let last = last.clone();
            handed.resize_with(events.len(), || Err(last.clone()));
        }
        handed
    }

    async fn publish(
        &self,
        link: &Link,
        event: &Stored,
        deadline: Instant,
    ) -> Result<PublishAckFuture, Verdict> {
        let subject = self.config.subject.render(&event.event);
        if subject.len() > MAX_SUBJECT_BYTES {
            let text = format!(
                "the subject is {} bytes long, at most {MAX_SUBJECT_BYTES} are possible: leave the \
                 longer ids out of nats.subject",
                subject.len()
            );
            return Err(Verdict::Refused(Reason::new(Kind::Invalid, text)));
        }
        let headers = headers(event, &self.config.stream, self.encoding);
        let body = Bytes::from(event.event.body(self.encoding).into_owned());
        let publishing = link.context.publish_with_headers(subject, headers, body);
        match timeout_at(deadline, publishing).await {
            Ok(Ok(ack)) => Ok(ack),
            // A client at its end fails in ways that look like the event's own fault.
            Ok(Err(_)) if !link.is_up() => Err(Verdict::Away(lost())),
            Ok(Err(error)) => Err(judge(&error)),
            Err(_) => Err(Verdict::Away(not_in_time())),
        }
    }
}

/// Whether the connection is not to be used again.
fn is_the_end(reason: &Reason) -> bool {
    matches!(reason.kind, Kind::Unreachable | Kind::Timeout | Kind::Credentials)
}

fn headers(stored: &Stored, stream: &str, encoding: Encoding) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let event = &stored.event;
    headers.insert(NATS_MESSAGE_ID, event.id.to_string());
    headers.insert(NATS_EXPECTED_STREAM, stream);
    headers.insert(CONTENT_TYPE, Envelope::content_type(encoding));
    match &stored.traceparent {
        Some(traceparent) => headers.insert(TRACEPARENT, traceparent.as_str()),
        None => headers.insert(TRACEPARENT, event.own_traceparent()),
    }
    if encoding == Encoding::Binary {
        headers.insert(format!("{PREFIX}datacontenttype"), DATA_CONTENT_TYPE);
        for (name, value) in event.attributes() {
            headers.insert(
                format!("{PREFIX}{name}"),
                utf8_percent_encode(&value, &ESCAPED).to_string(),
            );
        }
    }
    headers
}

/// What CloudEvents' HTTP binding, which NATS follows, has escaped in a header, beside what is not ASCII.
const ESCAPED: AsciiSet = CONTROLS.add(b' ').add(b'"').add(b'%');
