//! What `tail` reads from Kafka: all partitions that the topic has at the start, each from its beginning
//! or its end. It assigns them to itself without joining a group and commits nothing, so other consumers
//! are not affected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::super::{Terms, session, subscribed};
use super::client::{Context, Producer, describe, failed};
use super::topic::{Seen, Topic};
use super::{Config, Kafka, message};
use crate::verdict::Kind;

/// Timeout for asking for the end of a partition.
const LOOK: Duration = Duration::from_secs(5);

pub(in crate::sink) async fn tail(
    config: &Config,
    terms: &Terms,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let kafka = Kafka::new(config, terms);
    let Kafka { clients, topic, patience, .. } = &kafka;
    clients.check()?;
    let context = Context::default();
    let looker = clients.producer(context.clone())?;
    let deadline = Instant::now() + *patience;
    let assignment = match topic.look(&looker, &context, deadline).await {
        Ok(seen) => assignment(topic, seen, &looker, from_start).await,
        Err(reason) => Err(anyhow!(session::explained(&kafka, reason).await.text)),
    };
    spawn_blocking(move || drop(looker)); // waits for its threads
    let assignment = assignment?;

    let context = Context::default();
    // librdkafka requires a group name even if no group is joined.
    let group = format!("topic-bridge-tail-{:016x}", fastrand::u64(..));
    let settings = BTreeMap::from([
        ("group.id", group),
        ("enable.auto.commit", "false".into()),
        ("enable.auto.offset.store", "false".into()),
        ("auto.offset.reset", "earliest".into()),
    ]);
    let consumer = Arc::new(clients.consumer(&settings, context.clone())?);
    failed(consumer.assign(&assignment), "cannot read the topic")?;
    subscribed(from_start);
    let result = tokio::select! {
        () = lines.closed() => Ok(()),
        result = forward(&consumer, &context, &lines) => result,
    };
    spawn_blocking(move || drop(consumer)); // waits for its threads
    result
}

/// All partitions of an existing topic, and where to begin in each.
async fn assignment(
    topic: &Topic,
    seen: Seen,
    looker: &Producer,
    from_start: bool,
) -> anyhow::Result<TopicPartitionList> {
    let partitions = match seen.partitions {
        Some(partitions) => partitions,
        None if topic.create.is_some() => bail!(
            "the topic {:?} is missing: the bridge creates it at its start, so start that first",
            topic.name
        ),
        None => bail!(topic.missing()),
    };
    let (looker, name) = (looker.clone(), topic.name.clone());
    let assignment = spawn_blocking(move || {
        let mut assignment = TopicPartitionList::new();
        for partition in partitions {
            let offset = match from_start {
                true => Offset::Beginning,
                false => end(&looker, &name, partition.id),
            };
            assignment.add_partition_offset(&name, partition.id, offset)?;
        }
        Ok(assignment)
    });
    failed(assignment.await?, "cannot say where to begin")
}

/// The end of a partition as a number. When told to begin at "the end", librdkafka only asks for it once
/// its consumer is connected, and would miss events that arrive before that. Blocks.
fn end(looker: &Producer, topic: &str, partition: i32) -> Offset {
    match looker.client().fetch_watermarks(topic, partition, LOOK) {
        Ok((_oldest, next)) => Offset::Offset(next),
        Err(_) => Offset::End, // no leader now, so nothing arrives there either
    }
}

/// Reads until the receiver is closed. While the broker is away, waits for it.
async fn forward(
    consumer: &StreamConsumer<Context>,
    context: &Context,
    lines: &mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let mut told = None;
    loop {
        let error = match consumer.recv().await {
            Ok(message) => {
                told = None;
                context.forget();
                let payload = String::from_utf8_lossy(message.payload().unwrap_or_default());
                let line = message::line(message.headers(), &payload);
                if lines.send(line).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            Err(error) => error,
        };
        let reason = context.error().unwrap_or_else(|| describe(&error));
        let is_of_the_group = is_about_the_group(&error);
        match reason.kind {
            _ if is_of_the_group => {}
            Kind::Credentials | Kind::Topology => bail!(reason.text),
            kind if told != Some(kind) => {
                tracing::warn!(reason = reason.text, "waiting for Kafka");
                told = Some(kind);
            }
            _ => {}
        }
    }
}

/// The group exists in name only, so this user's rights on it do not matter.
fn is_about_the_group(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{
        CoordinatorNotAvailable, GroupAuthorizationFailed, WaitingForCoordinator,
    };
    let code = super::errors::code_of(error);
    matches!(code, CoordinatorNotAvailable | GroupAuthorizationFailed | WaitingForCoordinator)
}
