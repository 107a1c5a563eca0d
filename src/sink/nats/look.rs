//! Looking at a NATS server as an operator does: is everything as it should be, and what comes out of
//! the stream? Changes nothing there.

use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;

use super::super::{Finding, Health, Kind, Reason, subscribed};
use super::connection::Link;
use super::{PREFIX, stream};
use crate::config::{self, Config};
use crate::event::{self, Encoding, Envelope};
use crate::time::since_epoch;

/// Room for the headers of an event in the server's limit.
const HEADERS_BYTES: u64 = 1024;

/// A clock that differs by more is worth a word: times of events would look wrong to consumers.
const MAX_SKEW_MILLISECONDS: u64 = 2000;

pub(in super::super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |point, verdict, text: String| findings.push(Finding { point, verdict, text });
    let link = match Link::connect(&config.nats, config.relay.confirm_timeout).await {
        Ok(link) => link,
        Err(Reason { kind: Kind::Credentials, text }) => {
            add("connection", Health::Good, "the server answers".into());
            add("credentials", Health::Bad, text);
            return findings;
        }
        Err(reason) => {
            add("connection", Health::Bad, reason.text);
            return findings;
        }
    };
    let client = link.context.client();
    let info = client.server_info();
    add(
        "connection",
        Health::Good,
        format!("nats-server {} at {}:{}", info.version, info.host, info.port),
    );
    let needed = config.ingress.max_body_bytes + HEADERS_BYTES;
    if (info.max_payload as u64) < needed {
        let text = format!(
            "the server takes messages of up to {} bytes, and a callback may have {} \
             (ingress.max_body_bytes): what is larger becomes a dead letter; raise max_payload",
            info.max_payload, config.ingress.max_body_bytes
        );
        add("message size", Health::Doubtful, text);
    } else {
        add("message size", Health::Good, format!("up to {} bytes", info.max_payload));
    }
    let found = stream::find(&link.context, &config.nats.stream).await;
    match found.map_err(|reason| link.watch.complaint().unwrap_or(reason)) {
        Err(Reason { kind: Kind::Credentials, text }) => add("credentials", Health::Bad, text),
        Err(reason) => add("stream", Health::Bad, reason.text),
        Ok(None) if config.nats.create_stream => add(
            "stream",
            Health::Doubtful, // whether it may cannot be known without doing it
            format!("{} is missing: the bridge creates it at its start", config.nats.stream),
        ),
        Ok(None) => add("stream", Health::Bad, stream::missing(&config.nats)),
        Ok(Some(found)) => match stream::check(&found, &config.nats) {
            Err(reason) => add("stream", Health::Bad, reason.text),
            Ok(doubts) => {
                let text = format!(
                    "{} takes {}, {} replicas, forgets ids after {:?}",
                    found.name,
                    found.subjects.join(", "),
                    found.num_replicas,
                    found.duplicate_window
                );
                add("stream", Health::Good, text);
                for doubt in doubts {
                    add("stream", Health::Doubtful, doubt);
                }
                let (verdict, text) = clock(&link.context, &config.nats).await;
                add("clock", verdict, text);
            }
        },
    }
    findings
}

/// The server's clock beside ours, if it tells: from 2.10 on it stamps its answers.
async fn clock(context: &Context, config: &config::Nats) -> (Health, String) {
    let request = format!("STREAM.INFO.{}", config.stream);
    let asked = since_epoch(SystemTime::now());
    let answer: Result<serde_json::Value, _> = context.request(request, &()).await;
    let answered = since_epoch(SystemTime::now());
    let stamp = answer
        .ok()
        .and_then(|answer| humantime::parse_rfc3339(answer["ts"].as_str()?).ok().map(since_epoch));
    let Some(stamp) = stamp else {
        return (Health::Good, "not compared: a server before 2.10 tells no time".into());
    };
    let skew = if stamp < asked { asked - stamp } else { stamp.saturating_sub(answered) };
    if skew > MAX_SKEW_MILLISECONDS {
        let text = format!("differs from the server's by {skew} ms: set both by NTP");
        (Health::Doubtful, text)
    } else {
        (Health::Good, format!("within {} ms of the server's", skew + (answered - asked)))
    }
}

/// Reads the stream through a consumer of its own, which the server forgets afterwards.
pub(in super::super) async fn tail(
    config: &Config,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let link = Link::connect(&config.nats, config.relay.confirm_timeout).await;
    let mut link = link.map_err(|reason| anyhow!(reason.text))?;
    let stream = link.context.get_stream(&config.nats.stream).await;
    let stream = stream.with_context(|| format!("the stream {}", config.nats.stream))?;
    let deliver_policy = if from_start { DeliverPolicy::All } else { DeliverPolicy::New };
    let consumer = OrderedConfig {
        deliver_policy,
        filter_subject: config.nats.subject.pattern(),
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(consumer).await.context("cannot read the stream")?;
    let mut messages = consumer.messages().await.context("cannot read the stream")?;
    subscribed(from_start);
    loop {
        let message = tokio::select! {
            () = lines.closed() => return Ok(()),
            reason = link.watch.failed() => return Err(anyhow!(reason.text)),
            message = messages.next() => message,
        };
        let message = message.context("the stream ended")?.context("the stream broke off")?;
        let payload = String::from_utf8_lossy(&message.payload);
        let line = line(message.headers.as_ref(), &payload);
        if lines.send(line).await.is_err() {
            return Ok(());
        }
    }
}

/// The whole CloudEvent, whichever way it came.
fn line(headers: Option<&HeaderMap>, payload: &str) -> String {
    let header = |name: &str| headers.and_then(|headers| headers.get(name)).map(|v| v.as_str());
    let is_binary = header("ce-specversion").is_some()
        && header("Content-Type") != Some(Envelope::content_type(Encoding::Structured));
    if !is_binary {
        return payload.to_owned();
    }
    let value = |name: &str| {
        let value = header(&format!("{PREFIX}{name}"))?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    event::reassemble(value, payload)
}
