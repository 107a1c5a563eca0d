//! Reads topic-created events from NATS JetStream through a durable consumer, which remembers on the
//! server how far it is. With COUNT=n it ends after n events, else at Ctrl-C.
//!
//! `cargo run --example consume_nats`

mod shared;

use std::time::Duration;

use anyhow::anyhow;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::{self, AckKind, Message};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::sleep;

use shared::{Worker, read_event, setting};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let client = async_nats::connect(setting("NATS_URL", "nats://127.0.0.1:4222")).await?;
    let stream = jetstream::new(client).get_stream(setting("NATS_STREAM", "CHAT_TOPICS")).await?;
    let name = setting("NATS_CONSUMER", "topic-consumer");
    // Its defaults are what is wanted: from the oldest event on, each to be acknowledged by itself.
    let config = Config { durable_name: Some(name.clone()), ..Config::default() };
    let consumer = stream.get_or_create_consumer(&name, config).await?;

    let mut worker = Worker::new()?;
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    while !worker.is_done() {
        let message = tokio::select! {
            message = next(&consumer) => message,
            _ = &mut stop => break,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(error) => {
                eprintln!("{error:#}: trying again");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let acknowledged = match event(&message) {
            Ok(event) => {
                worker.work(&event);
                // Waits until the server has it: what it does not have after 30 s, it delivers again.
                message.double_ack().await
            }
            Err(error) => {
                eprintln!("not an event, not to come again: {error:#}");
                message.ack_with(AckKind::Term).await
            }
        };
        if let Err(error) = acknowledged {
            eprintln!("not acknowledged, so it comes again: {error}");
        }
    }
    Ok(())
}

/// Fetches one, for what was fetched and not worked on at the end would come again only after 30 s. None
/// if there is none for a while.
async fn next(consumer: &PullConsumer) -> anyhow::Result<Option<Message>> {
    let fetch = consumer.fetch().max_messages(1).expires(Duration::from_secs(30));
    let message = fetch.messages().await?.next().await;
    message.transpose().map_err(|error| anyhow!("cannot fetch: {error}"))
}

fn event(message: &Message) -> anyhow::Result<Value> {
    let headers = message.headers.clone().unwrap_or_default();
    let content_type = headers.get("Content-Type").map_or("", |value| value.as_str());
    let attributes = headers.iter().filter_map(|(name, values)| {
        let name = name.to_string();
        Some((name.strip_prefix("ce-")?.to_owned(), percent_decoded(values.first()?.as_str())))
    });
    read_event(content_type, attributes, &message.payload)
}

/// Header values are printable ASCII: what is not comes as %XX, a byte of UTF-8 each, and so does %.
fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(b'%'));
        bytes.extend_from_slice(&part.as_bytes()[if code.is_some() { 2 } else { 0 }..]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
