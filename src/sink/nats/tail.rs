//! `tail`: reads from the stream.

use anyhow::{Context as _, anyhow};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;

use super::super::{Terms, session, subscribed};
use super::{Config, Nats, PREFIX};
use crate::message::{Encoding, reassemble};

/// Reads the stream through its own consumer, which the server removes afterwards.
pub(in super::super) async fn tail(
    config: &Config,
    terms: &Terms,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let mut link = session::open(&Nats::new(config, terms)).await?;
    let stream = link.context.get_stream(&config.stream).await;
    let stream = stream.with_context(|| format!("the stream {}", config.stream))?;
    let deliver_policy = if from_start { DeliverPolicy::All } else { DeliverPolicy::New };
    let consumer = OrderedConfig {
        deliver_policy,
        filter_subject: config.subject.pattern(),
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
        let message = message.context("the stream ended")?.context("the stream was interrupted")?;
        let payload = String::from_utf8_lossy(&message.payload);
        let line = line(message.headers.as_ref(), &payload);
        if lines.send(line).await.is_err() {
            return Ok(());
        }
    }
}

/// The whole CloudEvent, in whichever mode it arrived.
fn line(headers: Option<&HeaderMap>, payload: &str) -> String {
    let header = |name: &str| headers.and_then(|headers| headers.get(name)).map(|v| v.as_str());
    let is_binary = header("ce-specversion").is_some()
        && header("Content-Type") != Some(Encoding::Structured.content_type());
    if !is_binary {
        return payload.to_owned();
    }
    let value = |name: &str| {
        let value = header(&format!("{PREFIX}{name}"))?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    reassemble(value, payload)
}
