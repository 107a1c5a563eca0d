//! How soon an event can be read: posts callbacks at a steady rate, reads the bridge's event stream
//! or a broker beside it as an ordinary consumer does, and measures for each topic the time from
//! its callback's sending, and from its answer, to its event. One clock measures both ends.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _, try_unfold};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::report::Row;
use super::server::{APP, Bench, RATED_CONNECTIONS, Server, Subject, TOKEN};
use super::servers::Kind;

/// For a broker to say where its topic ends, and for the last events after the last answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// By default, and so is RabbitMQ's queue.
const TOPIC: &str = "chat.topic.created";
/// Messages that RabbitMQ hands out before they are acknowledged.
const PREFETCH: u16 = 1000;

/// Sends callbacks at a rate and reads their events; the rows are the milliseconds from the sending
/// and from the answer.
pub(crate) async fn measure(
    bench: &Bench,
    server: &Server,
    rate: u32,
    place: Place,
    case: &str,
    subject: &Subject,
) -> anyhow::Result<[Row; 2]> {
    let stem = format!("@TGS#_@TGS#c{:012x}@TOPIC#_@TOPIC#c", fastrand::u64(..1 << 48));
    let count = (f64::from(rate) * bench.rated(rate).seconds) as usize;
    let trial = Trial { url: server.url.clone(), stem, rate: f64::from(rate), count };
    // On a thread of its own, so that no other work of this process is in its way.
    let measuring = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(trial.run(place))
    });
    let times = bench.watched(format!("readable, {rate}/s"), async { measuring.await? }).await?;
    let row = |(index, from): (usize, &str)| {
        let pairs = times.iter().map(|times| (times[index], times[2]));
        Row::new(format!("{case}, from {from}"), &subject.name, &quantiles(pairs))
    };
    Ok([(0, "sending"), (1, "its answer")].map(row))
}

/// One run.
struct Trial {
    url: String,
    /// Each topic's id is this and its number.
    stem: String,
    rate: f64,
    count: usize,
}

impl Trial {
    /// When each callback was sent and answered, and its event read.
    async fn run(self, place: Place) -> anyhow::Result<Vec<[Instant; 3]>> {
        let mut events = place.open().await.context("cannot read the events")?;
        let (stem, count, rate) = (self.stem.clone(), self.count, self.rate);
        let reader = tokio::spawn(async move { read(&mut events, &stem, count).await });
        let (due, mut numbers) = tokio::sync::mpsc::unbounded_channel();
        // A thread, because tokio's timer goes by milliseconds.
        std::thread::spawn(move || {
            let start = Instant::now();
            for number in 0..count {
                let at = start + Duration::from_secs_f64(number as f64 / rate);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                let _ = due.send(number); // nobody takes it any more where the run has failed
            }
        });
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let (mut sending, mut answers) = (JoinSet::new(), Vec::new());
        while let Some(number) = numbers.recv().await {
            // As over as many connections: whatever is due meanwhile waits.
            if sending.len() == RATED_CONNECTIONS as usize {
                answers.extend(sending.join_next().await.transpose()?.transpose()?);
            }
            sending.spawn(exchange(client.clone(), self.request(number)?, number));
        }
        while let Some(answer) = sending.join_next().await {
            answers.push(answer??);
        }
        let reads = timeout(PATIENCE, reader).await.context("events are missing")???;
        let times =
            |(number, [sent, answered]): (usize, [Instant; 2])| [sent, answered, reads[number]];
        Ok(answers.into_iter().map(times).collect())
    }

    fn request(&self, number: usize) -> anyhow::Result<Request<Full<Bytes>>> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
        let sign = hex::encode(Sha256::digest(format!("{TOKEN}{time}")));
        let body = json!({
            "CallbackCommand": "Group.CallbackAfterCreateTopic",
            "GroupId": "@TGS#2J4SZEAEL",
            "TopicId": format!("{}{number}", self.stem),
            "Operator_Account": "group_root",
            "Owner_Account": "leckie",
            "Type": "Community",
            "Name": "MyFirstTopic",
        });
        let uri = format!(
            "{}?SdkAppid={APP}&CallbackCommand=Group.CallbackAfterCreateTopic&contenttype=json\
             &ClientIP=127.0.0.1&OptPlatform=RESTAPI&Sign={sign}&RequestTime={time}",
            self.url,
        );
        Ok(Request::post(uri).body(Full::new(body.to_string().into()))?)
    }
}

async fn exchange(
    client: Client<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
    number: usize,
) -> anyhow::Result<(usize, [Instant; 2])> {
    let sent = Instant::now();
    let (head, body) = client.request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    let answered = Instant::now();
    let answer: Value = serde_json::from_slice(&body)?;
    let ok = head.status == StatusCode::OK && answer["ErrorCode"] == 0;
    ensure!(ok, "answered {} {answer}", head.status);
    Ok((number, [sent, answered]))
}

/// When each of the topics with these ids was first read.
async fn read(events: &mut Events, stem: &str, count: usize) -> anyhow::Result<Vec<Instant>> {
    let (mut reads, mut left) = (vec![None; count], count);
    while left > 0 {
        let event = events.next().await.context("the events ended")??;
        let now = Instant::now();
        let event: Value = serde_json::from_slice(&event).context("not an event")?;
        let topic = event["data"]["topic_id"].as_str().unwrap_or_default();
        let number = topic.strip_prefix(stem).and_then(|number| number.parse().ok());
        if let Some(read @ None) = number.and_then(|number: usize| reads.get_mut(number)) {
            *read = Some(now);
            left -= 1;
        }
    }
    Ok(reads.into_iter().flatten().collect())
}

/// Where the second moment comes before the first, as an event can be read before its callback's
/// answer is, the time counts as 0.
fn quantiles(pairs: impl Iterator<Item = (Instant, Instant)>) -> [(&'static str, f64); 3] {
    let mut histogram: Histogram<u64> =
        Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("constants within the limits");
    for (from, to) in pairs {
        histogram.saturating_record(to.saturating_duration_since(from).as_micros() as u64);
    }
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)].map(|(name, quantile)| (name, ms(quantile)))
}

/// Where events are read: the bridge's private listener, or a broker.
pub(crate) enum Place {
    Bridge(String),
    Broker(Kind, String),
}

/// All that is published after it was opened; a queue may hold older events.
type Events = BoxStream<'static, anyhow::Result<Bytes>>;

impl Place {
    async fn open(self) -> anyhow::Result<Events> {
        match self {
            Self::Bridge(url) => open_bridge(&url).await,
            Self::Broker(Kind::Kafka, url) => {
                let consumer = tokio::task::spawn_blocking(move || open_kafka(&url)).await??;
                let events = try_unfold(consumer, async |consumer| {
                    let event = consumer.recv().await?.payload().map(Bytes::copy_from_slice);
                    Ok(Some((event.unwrap_or_default(), consumer)))
                });
                Ok(events.boxed())
            }
            Self::Broker(Kind::Rabbitmq, url) => open_rabbitmq(&url).await,
            Self::Broker(Kind::Nats, url) => {
                let context = jetstream::new(async_nats::connect(url).await?);
                let stream =
                    context.get_stream("CHAT_TOPICS").await.map_err(|error| anyhow!(error))?;
                let deliver_policy = DeliverPolicy::New;
                let config = pull::OrderedConfig { deliver_policy, ..Default::default() };
                let messages = stream.create_consumer(config).await?.messages().await?;
                Ok(messages.map(|message| Ok(message?.message.payload)).boxed())
            }
        }
    }
}

async fn open_bridge(url: &str) -> anyhow::Result<Events> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let answer = client.get(format!("{url}events").parse()?).await?;
    ensure!(answer.status() == 200, "GET /events was answered {}", answer.status());
    let state = (answer.into_body(), Vec::new());
    let events = try_unfold(state, async |(mut body, mut pending)| {
        let frame = body.frame().await.context("the bridge closed it")??;
        pending.extend_from_slice(&frame.into_data().unwrap_or_default());
        let lines = whole_lines(&mut pending).into_iter().map(Ok);
        anyhow::Ok(Some((futures_util::stream::iter(lines), (body, pending))))
    });
    Ok(events.try_flatten().boxed())
}

/// Takes the whole lines out of `pending`, and gives the events in them.
fn whole_lines(pending: &mut Vec<u8>) -> Vec<Bytes> {
    let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines: Vec<u8> = pending.drain(..whole).collect();
    let events = lines.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
    events.map(Bytes::copy_from_slice).collect()
}

async fn open_rabbitmq(url: &str) -> anyhow::Result<Events> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(TOPIC.into(), "".into(), options, none).await?;
    // The connection goes along, for it closes when it is dropped.
    let events = try_unfold((consumer, connection), async |(mut consumer, connection)| {
        let delivery = consumer.next().await.context("RabbitMQ ended it")??;
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(Some((delivery.data.into(), (consumer, connection))))
    });
    Ok(events.boxed())
}

/// Reads all partitions, from where they end now. Blocks.
fn open_kafka(brokers: &str) -> anyhow::Result<StreamConsumer> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "benchmark") // named, as it must be, and never joined
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(TOPIC), PATIENCE)?;
    let found = metadata.topics().first().map_or(&[][..], |found| found.partitions());
    let mut assignment = TopicPartitionList::new();
    for partition in found {
        let (_, end) = consumer.fetch_watermarks(TOPIC, partition.id(), PATIENCE)?;
        assignment.add_partition_offset(TOPIC, partition.id(), Offset::Offset(end))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}
