//! async-nats, with JetStream: a stream in files that stores each message id once.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture};
use async_nats::jetstream::stream::{Config, StorageType};
use tokio::time::timeout;

use super::{APP, CONTENT_TYPE, Event, PATIENCE, Started, Work};

/// As the bridge creates its stream.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);
const MAX_AGE: Duration = Duration::from_secs(7 * 86400);

pub(crate) async fn publish(work: Work) -> anyhow::Result<(Started, u64)> {
    let client = async_nats::connect(&work.url).await?;
    let room = work.window.max(1 << 16);
    let context = ContextBuilder::new().timeout(PATIENCE).max_ack_inflight(room).build(client);
    let prefix = format!("chat.{}", work.place);
    create_stream(&context, &work.place, &prefix).await?;
    let subject = async_nats::Subject::from(format!("{prefix}.{APP}"));

    let started = Started::now()?;
    let mut unconfirmed = VecDeque::with_capacity(work.window);
    for number in 0..work.count {
        if unconfirmed.len() == work.window {
            confirm(unconfirmed.pop_front()).await?;
        }
        let event = Event::new(number);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event.id.as_str());
        headers.insert(NATS_EXPECTED_STREAM, work.place.as_str());
        headers.insert("Content-Type", CONTENT_TYPE);
        headers.insert("traceparent", event.traceparent.as_str());
        let publish = context.publish_with_headers(subject.clone(), headers, event.body.into());
        unconfirmed.push_back(publish.await?);
    }
    while !unconfirmed.is_empty() {
        confirm(unconfirmed.pop_front()).await?;
    }
    Ok((started, work.count))
}

async fn confirm(oldest: Option<PublishAckFuture>) -> anyhow::Result<()> {
    if let Some(oldest) = oldest {
        timeout(PATIENCE, oldest.into_future())
            .await
            .context("nothing was confirmed for long")??;
    }
    Ok(())
}

async fn create_stream(context: &Context, name: &str, prefix: &str) -> anyhow::Result<()> {
    let config = Config {
        name: name.to_owned(),
        subjects: vec![format!("{prefix}.*")],
        storage: StorageType::File,
        num_replicas: 1,
        duplicate_window: DUPLICATE_WINDOW,
        max_age: MAX_AGE,
        ..Config::default()
    };
    context.create_stream(config).await?;
    Ok(())
}
