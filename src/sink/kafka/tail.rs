//! What `tail` reads from Kafka: all partitions that the topic has at the start, each from its beginning
//! or its end. It is assigned them without joining a group and commits nothing, so nobody else gets less.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::client::{Clients, Context, describe, failed};
use super::message;
use super::topic::Topic;
use crate::config::Config;
use crate::sink::Kind;

pub(in crate::sink) async fn tail(
    config: &Config,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let clients = Clients::new(config);
    clients.check()?;
    let topic = Topic::new(&config.kafka);
    let partitions = partitions(config, &clients, &topic).await?;

    let offset = if from_start { Offset::Beginning } else { Offset::End };
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        let added = assignment.add_partition_offset(&topic.name, partition, offset);
        failed(added, "cannot say where to begin")?;
    }
    let context = Context::default();
    // librdkafka wants a group named even where none is joined.
    let group = format!("topic-bridge-tail-{:016x}", fastrand::u64(..));
    let settings = BTreeMap::from([
        ("group.id", group),
        ("enable.auto.commit", "false".into()),
        ("enable.auto.offset.store", "false".into()),
        ("auto.offset.reset", "earliest".into()),
    ]);
    let consumer = Arc::new(clients.consumer(&settings, context.clone())?);
    failed(consumer.assign(&assignment), "cannot read the topic")?;
    let result = tokio::select! {
        () = lines.closed() => Ok(()),
        result = forward(&consumer, &context, &lines) => result,
    };
    spawn_blocking(move || drop(consumer)); // waits for its threads
    result
}

/// The partitions of a topic that has to be there.
async fn partitions(config: &Config, clients: &Clients, topic: &Topic) -> anyhow::Result<Vec<i32>> {
    let context = Context::default();
    let looker = clients.producer(context.clone())?;
    let deadline = Instant::now() + config.relay.confirm_timeout;
    let seen = topic.look(&looker, &context, deadline).await;
    spawn_blocking(move || drop(looker)); // waits for its threads
    let seen = match seen {
        Ok(seen) => seen,
        Err(reason) => bail!(reason.text),
    };
    match seen.partitions {
        Some(partitions) => Ok(partitions.iter().map(|partition| partition.id).collect()),
        None if topic.create.is_some() => bail!(
            "the topic {:?} is missing: the bridge creates it at its start, so start that first",
            topic.name
        ),
        None => bail!(topic.missing()),
    }
}

/// Reads until nobody listens. While the broker is away it waits for it.
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
                context.forget_trouble();
                let payload = String::from_utf8_lossy(message.payload().unwrap_or_default());
                let line = message::line(message.headers(), &payload);
                if lines.send(line).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            Err(error) => error,
        };
        let reason = context.trouble().unwrap_or_else(|| describe(&error));
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

/// The group is in name only, so it does not matter what this user may do with it.
fn is_about_the_group(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{
        CoordinatorNotAvailable, GroupAuthorizationFailed, WaitingForCoordinator,
    };
    let code = super::verdict::code_of(error);
    matches!(code, CoordinatorNotAvailable | GroupAuthorizationFailed | WaitingForCoordinator)
}
