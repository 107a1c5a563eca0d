//! NATS JetStream. Each event is published with its id as `Nats-Msg-Id`, so that the stream stores a
//! repeat only once, and counts as delivered when the stream has acknowledged it.
//!
//! Each connection is given the events in order and without a gap, starting with the first unacknowledged
//! one, and is never used again once it is lost. So the first copies of the events arrive in order,
//! although a lost connection may still deliver what its server had received by then.

mod config;
mod connection;
mod errors;
mod stream;
mod tail;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::time::{Instant, timeout, timeout_at};

use super::Terms;
use super::outgoing::Outgoing;
use super::sends::Destination;
use super::session::{Broker, Failed, Session, Steps};
use crate::message::DATA_CONTENT_TYPE;
use crate::message::Envelope;
use crate::verdict::{Kind, Reason, Verdict};
pub(super) use config::Config;
use connection::{Link, lost};
use errors::{confirmed, judge, not_in_time};
pub(super) use tail::tail;

/// A longer subject comes close to the line length at which a server cuts the connection.
const MAX_SUBJECT_BYTES: usize = 2048;

/// Room for an event's headers within the server's limit.
const HEADERS_BYTES: u64 = 1024;

/// Attributes of a CloudEvent, including `datacontenttype`, are headers with this prefix.
const PREFIX: &str = "ce-";

const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

#[derive(Clone)]
pub(crate) struct Nats {
    config: Config,
    patience: Duration,
    max_body_bytes: u64,
}

impl Nats {
    pub(super) fn new(config: &Config, terms: &Terms) -> Self {
        let Terms { patience, max_body_bytes, .. } = *terms;
        Nats { config: config.clone(), patience, max_body_bytes }
    }
}

impl Broker for Nats {
    type Session = Link;

    const BATCHES: usize = 4;

    fn addresses(&self) -> Vec<String> {
        let address = |url: &url::Url| {
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(4222))
        };
        self.config.servers.iter().map(address).collect()
    }

    fn destination(&self, event: &Envelope) -> Destination {
        Destination {
            system: "nats",
            operation: "publish",
            name: self.config.subject.render(event),
            template: self.config.subject.text(),
            server: self.addresses().into_iter().next(),
        }
    }

    async fn open(&self, steps: &mut Steps) -> Result<Link, Failed> {
        let options = connection::options(&self.config, self.patience).await;
        let options = options.map_err(|reason| reason.at("credentials"))?;
        let link = Link::connect(self, options).await.map_err(|reason| match reason.kind {
            Kind::Credentials => {
                steps.good("connection", "the server answers");
                reason.at("credentials")
            }
            _ => reason.at("connection"),
        })?;
        let info = link.context.client().server_info();
        let server = format!("nats-server {} at {}:{}", info.version, info.host, info.port);
        steps.good("connection", server);
        if (info.max_payload as u64) < self.max_body_bytes + HEADERS_BYTES {
            let text = format!(
                "the server takes messages of up to {} bytes, and a callback may have {} \
                 (ingress.max_body_bytes): what is larger becomes a dead letter; raise max_payload",
                info.max_payload, self.max_body_bytes
            );
            steps.doubtful("message size", text);
        } else {
            steps.good("message size", format!("up to {} bytes", info.max_payload));
        }
        Ok(link)
    }
}

impl Session for Link {
    async fn check(&mut self, steps: &mut Steps) -> Result<(), Failed> {
        stream::check(&self.context, &self.nats.config, steps).await.map_err(|reason| {
            // The server's refusal is the reason why something else failed or was not answered.
            let reason = self.watch.refusal().unwrap_or(reason);
            let is_refusal = reason.kind == Kind::Credentials;
            reason.at(if is_refusal { "credentials" } else { "stream" })
        })
    }

    async fn publish(&mut self, messages: Vec<Outgoing<'_>>) -> Vec<Verdict> {
        let deadline = Instant::now() + self.nats.patience;
        let mut verdicts = Vec::with_capacity(messages.len());
        for handed in self.hand_over(messages, deadline).await {
            verdicts.push(match handed {
                Ok(ack) => confirmed(ack, &mut self.watch, deadline).await,
                Err(verdict) => verdict,
            });
        }
        // After any of these the connection cannot be trusted: what it still holds must not be sent.
        self.is_doubted = verdicts.iter().any(|verdict| match verdict {
            Verdict::Away(reason) => {
                matches!(reason.kind, Kind::Unreachable | Kind::Timeout | Kind::Credentials)
            }
            _ => false,
        });
        verdicts
    }

    fn is_sound(&self) -> bool {
        !self.is_doubted && self.is_up()
    }

    /// Everything is settled by now: this only flushes the last bytes.
    async fn close(self) {
        let _ = timeout(Duration::from_secs(1), self.context.client().flush()).await;
    }
}

impl Link {
    /// Passes all events to the client. An error is already a verdict.
    async fn hand_over(
        &self,
        messages: Vec<Outgoing<'_>>,
        deadline: Instant,
    ) -> Vec<Result<PublishAckFuture, Verdict>> {
        let count = messages.len();
        let mut handed = Vec::with_capacity(count);
        for message in messages {
            let ack = self.send(message, deadline).await;
            let is_stuck = matches!(ack, Err(Verdict::Away(_)));
            handed.push(ack);
            if is_stuck {
                break;
            }
        }
        // An event must not overtake an earlier one that has to wait.
        if let Some(Err(last @ Verdict::Away(_))) = handed.last() {
            let last = last.clone();
            handed.resize_with(count, || Err(last.clone()));
        }
        handed
    }

    async fn send(
        &self,
        message: Outgoing<'_>,
        deadline: Instant,
    ) -> Result<PublishAckFuture, Verdict> {
        let subject = self.nats.config.subject.render(message.event);
        if subject.len() > MAX_SUBJECT_BYTES {
            let text = format!(
                "the subject is {} bytes long, at most {MAX_SUBJECT_BYTES} are possible: leave the \
                 longer ids out of nats.subject",
                subject.len()
            );
            return Err(Verdict::Refused(Reason::new(Kind::Invalid, text)));
        }
        let headers = headers(&message, &self.nats.config.stream);
        let body = Bytes::from(message.body.into_owned());
        let publishing = self.context.publish_with_headers(subject, headers, body);
        match timeout_at(deadline, publishing).await {
            Ok(Ok(ack)) => Ok(ack),
            // A closed client fails in ways that look like the event's own fault.
            Ok(Err(_)) if !self.is_up() => Err(Verdict::Away(lost())),
            Ok(Err(error)) => Err(judge(&error)),
            Err(_) => Err(Verdict::Away(not_in_time())),
        }
    }
}

fn headers(message: &Outgoing, stream: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, message.id());
    headers.insert(NATS_EXPECTED_STREAM, stream);
    headers.insert(CONTENT_TYPE, message.content_type);
    headers.insert(TRACEPARENT, &*message.traceparent);
    if !message.attributes.is_empty() {
        headers.insert(format!("{PREFIX}datacontenttype"), DATA_CONTENT_TYPE);
    }
    for (name, value) in &message.attributes {
        headers.insert(format!("{PREFIX}{name}"), escaped(value));
    }
    headers
}

/// An attribute as a header's value. CloudEvents' HTTP binding, which the one for NATS follows, percent-encodes more
/// than is needed here, but some readers do not undo it (the Go SDK, for one), so what can be sent plain is sent
/// plain. A reader that does undo it gets the same: `%` is always encoded, and so is a quote at the beginning, which
/// such a reader may take for that of a quoted string. What NATS' clients trim, and line breaks, cannot be plain.
fn escaped(value: &str) -> String {
    const ESCAPED: AsciiSet = CONTROLS.add(b'%');
    const AT_START: AsciiSet = ESCAPED.add(b' ').add(b'"');
    const AT_END: AsciiSet = ESCAPED.add(b' ');
    let inner = value.trim_start_matches([' ', '"']);
    let start = &value[..value.len() - inner.len()];
    let middle = inner.trim_end_matches(' ');
    let end = &inner[middle.len()..];
    let parts = [(start, &AT_START), (middle, &ESCAPED), (end, &AT_END)];
    parts.iter().flat_map(|(part, set)| utf8_percent_encode(part, set)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    #[test]
    fn what_can_be_sent_plain_is_sent_plain() {
        for (value, expected) in [
            ("@TGS#_@TGS#c@TOPIC#_1", "@TGS#_@TGS#c@TOPIC#_1"),
            ("/apps/1400000000", "/apps/1400000000"),
            ("a \"b\" 'c'", "a \"b\" 'c'"),
            ("100%", "100%25"),
            ("%41", "%2541"),
            ("n\u{e4}me", "n%C3%A4me"),
            ("\"quoted\"", "%22quoted\""),
            ("  both ends  ", "%20%20both ends%20%20"),
            (" \" ", "%20%22%20"),
            ("  ", "%20%20"),
            ("a\r\nb\tc\u{7f}", "a%0D%0Ab%09c%7F"),
            ("", ""),
        ] {
            assert_eq!(escaped(value), expected, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn whoever_undoes_the_percent_encoding_gets_the_value(value in "\\PC*|[ \"%a\r\n\u{e9}]*") {
            let escaped = escaped(&value);
            prop_assert_eq!(percent_decode_str(&escaped).decode_utf8().unwrap(), &*value);
            prop_assert_eq!(escaped.trim(), &*escaped);
            prop_assert!(escaped.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", escaped);
        }
    }
}
