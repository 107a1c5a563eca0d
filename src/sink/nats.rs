//! NATS JetStream. Each event is published with its id as `Nats-Msg-Id`, so that the stream stores a
//! repeat only once, and counts as delivered when the stream has acknowledged it.
//!
//! A connection serves once. Left alone its client would connect anew when it is lost, and publish what it
//! still holds, behind what was sent again meanwhile: so it is not let in a second time, and ends. Nothing
//! is published while there is no connection.

mod identity;
mod look;
mod stream;

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::{HeaderName, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{
    ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind,
};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{
    AuthError, ConnectError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, ServerError,
};
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Kind, Reason, Verdict};
use crate::config::{self, Config};
use crate::event::{DATA_CONTENT_TYPE, Encoding, Envelope};
use crate::outbox::Stored;
use identity::Identity;
pub(super) use look::{examine, tail};

/// A dead connection is noticed after two of these without an answer.
const PING_EVERY: Duration = Duration::from_secs(5);

/// To connect to one server, and for one request about the stream.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// A connection, and what its server complained of.
struct Link {
    context: Context,
    state: watch::Receiver<LinkState>,
    /// The stream was there, and as it should be.
    is_stream_checked: bool,
}

/// How a connection is, as its client tells.
#[derive(Debug, Clone, PartialEq)]
enum LinkState {
    Up,
    Lost,
    /// The server does not let this user do what it tried: it says so beside the answers, and leaves
    /// the publisher waiting.
    Forbidden(String),
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
        let context = match self.prepare().await {
            Ok(context) => context,
            Err(reason) => return vec![Verdict::Away(reason); events.len()],
        };
        let deadline = Instant::now() + self.confirm_timeout;
        let mut verdicts = Vec::with_capacity(events.len());
        let mut acks = Vec::with_capacity(events.len());
        for event in events {
            acks.push(self.publish(&context, event, deadline).await);
        }
        let mut state = self.link.as_ref().expect("prepare leaves one").state.clone();
        for ack in acks {
            verdicts.push(match ack {
                Ok(ack) => confirmed(ack, &mut state, deadline).await,
                Err(verdict) => verdict,
            });
        }
        // After any of these the connection is not to be trusted: what it still holds must not go out.
        let is_lost = verdicts.iter().any(|verdict| match verdict {
            Verdict::Away(reason) => {
                matches!(reason.kind, Kind::Unreachable | Kind::Timeout | Kind::Credentials)
            }
            _ => false,
        });
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
    async fn prepare(&mut self) -> Result<Context, Reason> {
        if self.link.as_ref().is_some_and(|link| !link.is_up()) {
            self.link = None;
        }
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(connect(&self.config, self.confirm_timeout).await?),
        };
        if !link.is_stream_checked {
            let checking = stream::ensure(&link.context, &self.config);
            let checked = timeout(PATIENCE, checking).await.unwrap_or_else(|_| {
                let text = "the server has not told about the stream in time: is it overloaded, or stopped?";
                Err(Reason::new(Kind::Timeout, text))
            });
            let state = link.state.borrow().clone();
            let checked = match (checked, state) {
                (Err(_), LinkState::Forbidden(complaint)) => Err(forbidden(&complaint)),
                (checked, _) => checked,
            };
            if let Err(reason) = &checked
                && matches!(reason.kind, Kind::Unreachable | Kind::Timeout | Kind::Credentials)
            {
                self.link = None;
            }
            let doubts = checked?;
            for doubt in doubts.iter().filter(|doubt| !self.warned.contains(doubt)) {
                tracing::warn!(stream = self.config.stream, "{doubt}");
            }
            self.warned = doubts;
        }
        let link = self.link.as_mut().expect("connected above");
        link.is_stream_checked = true;
        Ok(link.context.clone())
    }

    /// Hands one event to the client. An error is a verdict already.
    async fn publish(
        &self,
        context: &Context,
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
        let publishing = context.publish_with_headers(subject, headers, body);
        match timeout_at(deadline, publishing).await {
            Ok(Ok(ack)) => Ok(ack),
            Ok(Err(error)) => Err(judge(&error)),
            Err(_) => Err(Verdict::Away(not_in_time())),
        }
    }
}

impl Link {
    fn is_up(&self) -> bool {
        *self.state.borrow() == LinkState::Up
            && self.context.client().connection_state() == State::Connected
    }
}

/// Waits for one acknowledgement, not past the deadline, and not on a connection that is lost.
async fn confirmed(
    ack: PublishAckFuture,
    state: &mut watch::Receiver<LinkState>,
    deadline: Instant,
) -> Verdict {
    let lost = async {
        match state.wait_for(|state| *state != LinkState::Up).await.as_deref() {
            Ok(LinkState::Forbidden(complaint)) => forbidden(complaint),
            _ => Reason::new(
                Kind::Unreachable,
                "the connection was lost before the acknowledgement came",
            ),
        }
    };
    tokio::select! {
        biased; // an acknowledgement that is there counts, whatever happened since
        ack = timeout_at(deadline, ack) => match ack {
            // A duplicate is in the stream already: that is what delivered means.
            Ok(Ok(_)) => Verdict::Delivered,
            Ok(Err(error)) => judge(&error),
            Err(_) => Verdict::Away(not_in_time()),
        },
        reason = lost => Verdict::Away(reason),
    }
}

fn not_in_time() -> Reason {
    Reason::new(
        Kind::Timeout,
        "no acknowledgement within relay.confirm_timeout: is the server overloaded, or stopped?",
    )
}

fn forbidden(complaint: &str) -> Reason {
    let text = format!(
        "the server says: {complaint}; let this user publish to nats.subject and $JS.API.>, and \
         subscribe to _INBOX.>"
    );
    Reason::new(Kind::Credentials, text)
}

/// What the server, or the client in its stead, says of one publish.
fn judge(error: &PublishError) -> Verdict {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Verdict::Away(Reason::new(
            Kind::Topology,
            "no stream takes this subject: does nats.stream exist, and have it among its subjects?",
        )),
        PublishErrorKind::MaxPayloadExceeded => {
            let text = format!("{error}: raise max_payload in the server's configuration");
            Verdict::Refused(Reason::new(Kind::TooLarge, text))
        }
        PublishErrorKind::TimedOut => Verdict::Away(not_in_time()),
        PublishErrorKind::BrokenPipe => Verdict::Away(Reason::new(
            Kind::Unreachable,
            "the connection was lost before the acknowledgement came",
        )),
        PublishErrorKind::MaxAckPending => {
            Verdict::Away(Reason::new(Kind::Blocked, error.to_string()))
        }
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::Other => {
            let refusal =
                error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
            match refusal {
                Some(refusal) => judge_refusal(refusal.error_code(), &refusal.to_string()),
                None => Verdict::Later(Reason::new(Kind::Other, error.to_string())),
            }
        }
    }
}

/// What JetStream says of one publish that it did not take.
fn judge_refusal(code: ErrorCode, text: &str) -> Verdict {
    let reason = |kind, hint: &str| Reason::new(kind, format!("{text}: {hint}"));
    match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            Verdict::Refused(reason(Kind::TooLarge, "raise the stream's max_msg_size"))
        }
        ErrorCode::STREAM_NOT_MATCH | ErrorCode::STREAM_NOT_FOUND => Verdict::Away(reason(
            Kind::Topology,
            "another stream than nats.stream has this subject",
        )),
        ErrorCode::STREAM_SEALED => {
            Verdict::Away(reason(Kind::Topology, "the stream takes nothing more, name another"))
        }
        ErrorCode::STREAM_STORE_FAILED => {
            Verdict::Away(reason(Kind::Rejected, "is the stream at one of its limits?"))
        }
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED => {
            Verdict::Away(reason(Kind::Blocked, "give JetStream more room"))
        }
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::STREAM_OFFLINE => {
            Verdict::Away(reason(Kind::Blocked, "is a majority of the stream's replicas up?"))
        }
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            Verdict::Away(reason(Kind::Topology, "enable JetStream on the server"))
        }
        _ => Verdict::Later(Reason::new(Kind::Other, text)),
    }
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

/// Tries each server once. Acknowledgements are waited for here, for no longer than `confirm_timeout`.
async fn connect(config: &config::Nats, confirm_timeout: Duration) -> Result<Link, Reason> {
    let (state_now, state) = watch::channel(LinkState::Up);
    let has_connected = Arc::new(AtomicBool::new(false));
    let options = options(config, has_connected.clone())?.event_callback(move |event| {
        match event {
            Event::Disconnected | Event::Closed => {
                state_now.send_replace(LinkState::Lost);
            }
            Event::ServerError(ServerError::Other(complaint))
                if complaint.to_lowercase().contains("permissions violation") =>
            {
                state_now.send_replace(LinkState::Forbidden(complaint));
            }
            _ => {}
        }
        async {}
    });
    let servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
    let patience = PATIENCE * u32::try_from(servers.len()).unwrap_or(1) + PATIENCE;
    let client = match timeout(patience, options.connect(servers)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(explain(&error, config)),
        Err(_) => return Err(Reason::new(Kind::Unreachable, unreachable(config, "no answer"))),
    };
    has_connected.store(true, Ordering::Relaxed);
    // The client's own deadline only must not come before ours.
    let longer = confirm_timeout + PATIENCE;
    let context = ContextBuilder::new()
        .timeout(longer)
        .ack_timeout(longer)
        .max_ack_inflight(1 << 16)
        .build(client);
    Ok(Link { context, state, is_stream_checked: false })
}

/// A client that has been connected is not let in again, and gives up after a look at each server.
fn options(
    config: &config::Nats,
    has_connected: Arc<AtomicBool>,
) -> Result<ConnectOptions, Reason> {
    let identity = Identity::read(config)?;
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = match has_connected.load(Ordering::Relaxed) {
            false => identity.auth(&nonce),
            true => Err(AuthError::new("a connection that was lost is not taken up again")),
        };
        async { auth }
    });
    options = options
        .name("topic-bridge")
        .ping_interval(PING_EVERY)
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .max_reconnects(config.servers.len());
    if let Some(ca) = &config.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = &config.tls.identity {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options)
}

fn unreachable(config: &config::Nats, error: &str) -> String {
    let servers: Vec<_> = config.servers.iter().map(config::address_of).collect();
    format!(
        "cannot connect to {}: {error}; is the server up, and nats.servers right?",
        servers.join(", ")
    )
}

/// Why there is no connection.
fn explain(error: &ConnectError, config: &config::Nats) -> Reason {
    let mut text = error.to_string();
    if let Some(source) = error.source().filter(|source| !text.contains(&source.to_string())) {
        text = format!("{text}: {source}");
    }
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Reason::new(
            Kind::Credentials,
            format!(
                "the server does not let the bridge in: {text}; look at the credentials under [nats]"
            ),
        ),
        ConnectErrorKind::Tls => Reason::new(
            Kind::Unreachable,
            format!("no TLS connection: {text}; look at nats.tls, and at the server's certificate"),
        ),
        _ if text.contains("certificate") || text.contains("handshake") => Reason::new(
            Kind::Unreachable,
            format!("no TLS connection: {text}; look at nats.tls, and at the server's certificate"),
        ),
        _ => Reason::new(Kind::Unreachable, unreachable(config, &text)),
    }
}
