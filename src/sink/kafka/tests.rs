//! The sink against librdkafka's mock cluster, which speaks the protocol and fails as it is told to.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::*;
use crate::config::Faults;
use crate::outbox::Stored;
use crate::settings::Settings;
use crate::sink::{Finding, Health, Sink, tail};
use crate::spans::Spans;
use crate::time::Timestamp;
use crate::verdict::Verdict;

type Cluster = MockCluster<'static, DefaultProducerContext>;

const TOPIC: &str = "chat.topic.created";

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    cluster
}

/// What `more` says goes before the defaults of these tests: a short patience, and no topic made.
fn config(brokers: &str, more: &[&str]) -> Settings {
    let own = [
        "sink=kafka",
        "apps=[{sdk_app_id=1400000000,allow_unsigned=true}]",
        "kafka.create_topic=false",
        "relay.confirm_timeout=3s",
    ];
    let mut set: Vec<String> = own.iter().map(ToString::to_string).collect();
    set.push(format!("kafka.brokers={brokers}"));
    set.extend(more.iter().map(ToString::to_string));
    Settings::of(&set).unwrap()
}

fn sink(cluster: &Cluster, more: &[&str]) -> Sink {
    of(&config(&cluster.bootstrap_servers(), more)).unwrap()
}

fn of(settings: &Settings) -> Result<Sink, Faults> {
    Sink::new(&settings.sink, &settings.terms(), Spans::off())
}

async fn examine(settings: &Settings) -> Vec<Finding> {
    Sink::examine(&settings.sink, &settings.terms()).await.unwrap()
}

fn event(position: u64, name: &str) -> Stored {
    let event = format!(
        r#"{{"specversion":"1.0","id":"92f58f4e-5a60-5ecf-9e83-{position:012}","type":"chat.topic.created.v1","source":"/apps/1400000000","subject":"topic-{position}","time":"2026-11-22T18:00:00.123Z","datacontenttype":"application/json","dataschema":"urn:topic-bridge:schema:topic-created:v1","partitionkey":"group","data":{{"sdk_app_id":1400000000,"topic_name":"{name}"}}}}"#
    );
    Stored::of(position, Timestamp::default(), &event)
}

fn events(count: u64) -> Vec<Stored> {
    (1..=count).map(|position| event(position, "name")).collect()
}

/// The latest error that the client has told of.
fn error(sink: &Sink) -> Option<Reason> {
    sink.kafka().session()?.context.error()
}

fn is_delivered(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(|verdict| *verdict == Verdict::Delivered)
}

fn kind(verdict: &Verdict) -> Option<(Kind, &str)> {
    verdict.reason().map(|reason| (reason.kind, &*reason.text))
}

/// The first `count` lines that `tail` shows of the whole topic.
async fn tail_of(settings: &Settings, count: usize) -> Vec<String> {
    let (terms, (sender, mut lines)) = (settings.terms(), mpsc::channel(10));
    let read = async {
        let mut read = Vec::new();
        while read.len() < count {
            read.push(lines.recv().await.unwrap());
        }
        drop(lines);
        read
    };
    let both = async { tokio::join!(tail(&settings.sink, &terms, true, sender), read) };
    let (ended, read) = timeout(Duration::from_secs(20), both).await.unwrap();
    ended.unwrap();
    read
}

#[tokio::test]
async fn a_batch_arrives_whole_in_order_and_can_be_tailed() {
    for encoding in ["structured", "binary"] {
        let cluster = cluster();
        let more = [&*format!("event.encoding={encoding}")];
        let mut kafka = sink(&cluster, &more);
        let batch = events(600);
        assert!(is_delivered(&kafka.deliver(&batch).await));
        let config = config(&cluster.bootstrap_servers(), &more);
        let lines = tail_of(&config, 600).await;
        assert!(lines.into_iter().eq(batch.iter().map(|stored| stored.event.structured())));
        kafka.close().await;
    }
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let cluster = cluster();
    // Twenty rounds to the broker, on a machine that may have much else to do.
    let patient = "relay.confirm_timeout=60s";
    let mut kafka = sink(&cluster, &["kafka.properties.queue.buffering.max.messages=5", patient]);
    assert!(is_delivered(&kafka.deliver(&events(100)).await));
}

/// The order of what an idempotent producer has sent is in doubt after such an error, and each later
/// send fails, for ever.
#[tokio::test]
async fn a_fatal_error_heals_with_a_new_producer() {
    let cluster = cluster();
    let mut kafka = sink(&cluster, &[]);
    assert!(is_delivered(&kafka.deliver(&events(3)).await));
    let desynchronized = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[desynchronized]);
    let batch = events(50);
    let verdicts = kafka.deliver(&batch).await;
    let (kind, text) = verdicts.iter().find_map(kind).unwrap();
    assert_eq!(kind, Kind::Other);
    assert!(text.starts_with("the idempotent producer failed for good ("), "{text}");
    assert!(verdicts.iter().all(|verdict| !matches!(verdict, Verdict::Refused(_))));
    assert!(is_delivered(&kafka.deliver(&batch).await));
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_nothing_beside_it() {
    let cluster = cluster();
    let mut kafka = sink(&cluster, &["kafka.properties.message.max.bytes=2000"]);
    let batch = [event(1, "a"), event(2, &"x".repeat(3000)), event(3, "b")];
    let verdicts = kafka.deliver(&batch).await;
    assert_eq!((&verdicts[0], &verdicts[2]), (&Verdict::Delivered, &Verdict::Delivered));
    let Verdict::Refused(reason) = &verdicts[1] else { panic!("{verdicts:?}") };
    assert_eq!(reason.kind, Kind::TooLarge);
}

/// The broker's limit is on the bundle that a client makes of many messages.
#[tokio::test]
async fn what_is_only_too_large_together_is_delivered_one_by_one() {
    let cluster = cluster();
    let mut kafka = sink(&cluster, &[]);
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD,
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        let batch = events(20);
        let verdicts = kafka.deliver(&batch).await;
        // However many of them the client has put into the bundle that was refused.
        let of = |verdict: &Verdict| matches!(verdict, Verdict::Alone(_));
        assert!(verdicts.iter().any(of), "{verdicts:?}");
        for (event, verdict) in
            batch.iter().zip(&verdicts).filter(|(_, v)| !is_delivered(&[(*v).clone()]))
        {
            assert!(of(verdict), "{verdict:?}");
            assert!(is_delivered(&kafka.deliver(std::slice::from_ref(event)).await));
        }
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        let verdicts = kafka.deliver(&events(1)).await;
        assert!(matches!(&verdicts[..], [Verdict::Refused(_)]), "alone: {verdicts:?}");
    }
}

#[tokio::test]
async fn a_missing_topic_is_not_created_by_looking_or_sending() {
    let cluster = MockCluster::new(1).unwrap();
    let mut kafka = sink(&cluster, &[]);
    for _ in 0..2 {
        let verdicts = kafka.deliver(&events(2)).await;
        let (kind, text) = kind(&verdicts[0]).unwrap();
        assert_eq!(kind, Kind::Topology);
        assert!(text.contains("kafka-topics.sh --bootstrap-server 127.0.0.1:"), "{text}");
        assert_eq!(verdicts[0], verdicts[1]);
    }
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    assert!(is_delivered(&kafka.deliver(&events(2)).await), "as soon as it is there");
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let cluster = cluster();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.topic_error(TOPIC, refusal).unwrap();
    let mut kafka = sink(&cluster, &[]);
    assert_eq!(kafka.ready().await.unwrap_err().kind, Kind::Credentials);
    let findings = examine(&config(&cluster.bootstrap_servers(), &[])).await;
    let seen: Vec<_> = findings.iter().map(|finding| (finding.point, finding.verdict)).collect();
    assert_eq!(seen, [("connection", Health::Good), ("credentials", Health::Bad)]);
}

#[tokio::test]
async fn a_refused_connection_is_noticed_long_before_the_deadline() {
    let config = config("127.0.0.1:1", &["relay.confirm_timeout=20s"]);
    let mut kafka = of(&config).unwrap();
    let started = Instant::now();
    let verdicts = kafka.deliver(&events(2)).await;
    let (kind, text) = kind(&verdicts[1]).unwrap();
    assert_eq!(kind, Kind::Unreachable);
    assert!(text.contains("127.0.0.1:1") && text.contains("refused"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// As a TLS listener does to a client that does not speak TLS: librdkafka takes it for no error.
#[tokio::test]
async fn a_broker_that_hangs_up_is_told_with_the_likely_cause() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hang_up = tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1024]).await;
        }
    });
    let mut kafka = of(&config(&address, &[])).unwrap();
    let reason = kafka.ready().await.unwrap_err();
    assert_eq!(reason.kind, Kind::Unreachable);
    let said = ["Disconnected", "is security.protocol that of the listener"];
    assert!(said.iter().all(|said| reason.text.contains(said)), "{}", reason.text);
    hang_up.abort();
}

/// Whatever were left in the producer would be sent later, behind its own repetition.
#[tokio::test]
async fn without_confirmation_the_batch_ends_in_time_and_leaves_nothing_in_flight() {
    for more in [&[][..], &["kafka.properties.delivery.timeout.ms=60000"]] {
        let cluster = cluster();
        let mut kafka = sink(&cluster, more);
        assert!(is_delivered(&kafka.deliver(&events(1)).await));
        cluster.broker_round_trip_time(-1, Duration::from_secs(30)).unwrap();
        let started = Instant::now();
        let verdicts = kafka.deliver(&events(30)).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        for verdict in &verdicts {
            let (kind, text) = kind(verdict).unwrap();
            assert!(matches!(kind, Kind::Timeout | Kind::Unreachable), "{kind:?}: {text}");
            assert!(matches!(verdict, Verdict::Away(_)));
        }
        let producing = kafka.kafka().session();
        let in_flight = producing.map_or(0, |producing| producing.producer().in_flight_count());
        assert_eq!(in_flight, 0);
        cluster.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    }
}

#[tokio::test]
async fn a_trouble_that_is_over_is_not_told_again() {
    let cluster = cluster();
    let mut kafka = sink(&cluster, &[]);
    assert!(kafka.ready().await.is_ok());
    cluster.broker_down(1).unwrap();
    let away = timeout(Duration::from_secs(20), async {
        loop {
            if let Err(reason) = kafka.ready().await {
                return reason;
            }
        }
    });
    assert_eq!(away.await.unwrap().kind, Kind::Unreachable);
    cluster.broker_up(1).unwrap();
    let back = timeout(Duration::from_secs(20), async { while kafka.ready().await.is_err() {} });
    back.await.unwrap();
    assert_eq!(error(&kafka), None);
    assert!(is_delivered(&kafka.deliver(&events(5)).await));
}

#[tokio::test]
async fn a_batch_dropped_midway_does_not_keep_the_sink_from_closing() {
    let cluster = cluster();
    let mut kafka = sink(&cluster, &[]);
    assert!(kafka.ready().await.is_ok());
    cluster.broker_round_trip_time(-1, Duration::from_secs(30)).unwrap();
    let batch = events(30);
    assert!(timeout(Duration::from_millis(50), kafka.deliver(&batch)).await.is_err());
    let started = Instant::now();
    kafka.close().await;
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

#[test]
fn a_property_that_librdkafka_does_not_take_is_a_fault_of_the_configuration() {
    for (property, expected) in [
        ("sasl.pasword=hush-hush", "no property \"sasl.pasword\""),
        ("linger.ms=a-while", "\"linger.ms\": "),
        ("ssl.ca.location=/nowhere/ca.crt", "ssl.ca.location"),
        ("acks=1", "acks"),
    ] {
        let security = "kafka.properties.security.protocol=ssl";
        let config = config("127.0.0.1:1", &[security, &format!("kafka.properties.{property}")]);
        let error = of(&config).err().map(|error| format!("{error:#}"));
        let error = error.unwrap_or_else(|| panic!("{property} was taken"));
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
}

#[tokio::test]
async fn a_check_tells_what_is_there_and_creates_nothing() {
    let cluster = MockCluster::new(1).unwrap();
    let servers = cluster.bootstrap_servers();
    for _ in 0..2 {
        let findings = examine(&config(&servers, &[])).await;
        let last = findings.last().unwrap();
        assert_eq!((last.point, last.verdict), ("topic", Health::Bad), "{findings:?}");
    }
    let findings = examine(&config(&servers, &["kafka.create_topic=true"])).await;
    assert_eq!(findings.last().unwrap().verdict, Health::Doubtful, "{findings:?}");
    cluster.create_topic(TOPIC, 2, 1).unwrap();
    let findings = examine(&config(&servers, &[])).await;
    let topic = findings.iter().find(|finding| finding.point == "topic").unwrap();
    assert_eq!(topic.verdict, Health::Good, "{findings:?}");
    assert!(topic.text.contains("2 partitions"));
    let findings = examine(&config("127.0.0.1:1", &[])).await;
    assert_eq!((findings[0].point, findings[0].verdict), ("connection", Health::Bad));
}
