//! Where events are read: the bridge's own event stream or a broker, as an ordinary consumer reads it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Uri};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::{authority, connect};

/// Of a line of the stream; an event is some hundred bytes.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// For a broker to say where its topic ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that RabbitMQ hands out before they are acknowledged.
const PREFETCH: u16 = 1000;

/// Has everything that is published after it was opened.
pub(crate) enum Source {
    Stream { body: Incoming, pending: Vec<u8> },
    Kafka(StreamConsumer),
    Rabbitmq { consumer: Box<lapin::Consumer>, _connection: Connection },
    Nats(Box<pull::Ordered>),
}

impl Source {
    /// `http://…` is a bridge's private listener; `kafka://…#topic`, `amqp://…#queue` and
    /// `nats://…#stream` are brokers', where the place exists already.
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        let (base, place) = url.split_once('#').unwrap_or((url, ""));
        match url.split_once("://") {
            Some(("http", _)) => open_stream(&url.parse()?).await,
            Some(("kafka", brokers)) => {
                let brokers = brokers.split('#').next().unwrap_or_default().to_owned();
                let topic = place.to_owned();
                tokio::task::spawn_blocking(move || open_kafka(&brokers, &topic)).await?
            }
            Some(("amqp", _)) => open_rabbitmq(base, place).await,
            Some(("nats", _)) => open_nats(base, place).await,
            _ => bail!("{url} begins with none of http, kafka, amqp and nats"),
        }
    }

    /// The next events, and when they came. An end is an error.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(Instant, Vec<Bytes>)> {
        Ok(match self {
            Source::Stream { body, pending } => {
                let frame = body.frame().await.context("the bridge closed it")??;
                let now = Instant::now();
                pending.extend_from_slice(&frame.into_data().unwrap_or_default());
                (now, lines(pending)?)
            }
            Source::Kafka(consumer) => {
                let message = consumer.recv().await?;
                let now = Instant::now();
                (now, vec![Bytes::copy_from_slice(message.payload().unwrap_or_default())])
            }
            Source::Rabbitmq { consumer, .. } => {
                let delivery = consumer.next().await.context("RabbitMQ ended it")??;
                let now = Instant::now();
                delivery.ack(BasicAckOptions::default()).await?;
                (now, vec![delivery.data.into()])
            }
            Source::Nats(messages) => {
                let message = messages.next().await.context("NATS ended it")??;
                (Instant::now(), vec![message.message.payload])
            }
        })
    }
}

/// Takes the whole lines out of `pending`, and gives the events in them.
fn lines(pending: &mut Vec<u8>) -> anyhow::Result<Vec<Bytes>> {
    let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = pending[..whole].split(|byte| *byte == b'\n');
    let events = lines.filter_map(|line| line.strip_prefix(b"data:"));
    let events = events.map(Bytes::copy_from_slice).collect();
    pending.drain(..whole);
    ensure!(pending.len() <= MAX_LINE_BYTES, "a line of over {MAX_LINE_BYTES} bytes");
    Ok(events)
}

/// Asks for the events from now on, and returns when the bridge has begun its answer.
async fn open_stream(admin: &Uri) -> anyhow::Result<Source> {
    let request = Request::get("/events")
        .header(HOST, authority(admin)?)
        .header(ACCEPT, "text/event-stream")
        .body(http_body_util::Full::default())?;
    let mut sender = connect(admin).await?;
    let response = sender.send_request(request).await.context("cannot subscribe")?;
    ensure!(response.status() == 200, "GET /events was answered {}", response.status());
    // The connection goes on for as long as its body is read, without its sender.
    Ok(Source::Stream { body: response.into_body(), pending: Vec::new() })
}

/// Reads all partitions, from where they end now. Blocks.
fn open_kafka(brokers: &str, topic: &str) -> anyhow::Result<Source> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "benchmark") // named, as it must be, and never joined
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
    ensure!(!found.is_empty(), "there is no topic {topic}");
    let mut assignment = TopicPartitionList::new();
    for partition in found {
        let (_, end) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE)?;
        assignment.add_partition_offset(topic, partition.id(), Offset::Offset(end))?;
    }
    consumer.assign(&assignment)?;
    Ok(Source::Kafka(consumer))
}

/// Reads the queue, which may hold older events.
async fn open_rabbitmq(url: &str, queue: &str) -> anyhow::Result<Source> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await?;
    Ok(Source::Rabbitmq { consumer: Box::new(consumer), _connection: connection })
}

async fn open_nats(url: &str, stream: &str) -> anyhow::Result<Source> {
    let context = jetstream::new(async_nats::connect(url).await?);
    let stream = context.get_stream(stream).await.map_err(|error| anyhow!(error))?;
    let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::New, ..Default::default() };
    let consumer = stream.create_consumer(config).await?;
    Ok(Source::Nats(Box::new(consumer.messages().await?)))
}
