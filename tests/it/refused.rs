//! What an operator gets to hear when a broker is not what it should be: a setting that refuses every event, a
//! subject of another stream, a port of something else.

use serde_json::json;

use crate::backend::Backend;
use crate::bridge::{APPS, Ended, eventually, program, run};
use crate::broker::{self, Kind, Message};
use crate::calls::{becomes, call_many, is_delivered, start};

/// `limit` in bytes is a setting of what the events go to, as a client of the broker's names it.
fn check(kind: Kind, setting: &str, limit: impl Fn(&str, u32) -> serde_json::Value) {
    let Some(broker) = broker::shared(kind) else { return };
    let limit = |bytes| limit(&broker.target.name, bytes);
    broker.target.make(&limit(1_000_000));
    let bridge = start(&broker.target, &[]);
    call_many(&bridge, "before", 3);
    is_delivered(&bridge);
    becomes(&bridge, "ready");
    broker.target.make(&limit(100));
    call_many(&bridge, "refused", 20);
    is_delivered(&bridge);
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 20.0);
    becomes(&bridge, "degraded");
    let (status, readiness) = bridge.readiness();
    let reason = readiness["sink"]["reason"].as_str().unwrap();
    assert_eq!(status, 200, "callbacks are still taken");
    assert!(reason.starts_with("the last 20 events were refused for good: "), "{reason}");
    assert!(reason.contains(setting) && reason.contains("outbox retry"), "{reason}");
    let told = eventually("it is told", || {
        let told = bridge.logged("refused for good, and kept as dead letters");
        (!told.is_empty()).then_some(told)
    });
    assert_eq!(told.len(), 1, "the first at once, the others with the next reminder");
    assert_eq!(told[0]["level"], "ERROR");
    broker.target.make(&limit(1_000_000));
    let mut retry = program();
    retry.args(["outbox", "retry", "--json", "--admin", &format!("http://{}", bridge.admin)]);
    let ended = run(&mut retry);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    is_delivered(&bridge);
    becomes(&bridge, "ready");
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 0.0);
    let topics: Vec<_> = broker.target.read(23).iter().map(Message::topic_id).collect();
    let expected: Vec<_> = (0..20).map(|number| format!("refused-{number}")).collect();
    let retried: Vec<_> = topics.into_iter().filter(|topic| topic.starts_with("refused")).collect();
    assert_eq!(retried, expected, "all of them, in order");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_topics_limit_that_refuses_everything_degrades_and_is_named_kafka() {
    check(
        Kind::Kafka,
        "max.message.bytes",
        |_, limit| json!({"max.message.bytes": limit.to_string()}),
    );
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_streams_limit_that_refuses_everything_degrades_and_is_named_nats() {
    check(
        Kind::Nats,
        "max_msg_size",
        |name, limit| json!({"subjects": [format!("{name}.*")], "max_msg_size": limit}),
    );
}

fn check_connect(settings: &[(&str, &str)]) -> Ended {
    let mut check = program();
    check.args(["check", "--connect"]).env("TOPIC_BRIDGE_APPS", APPS);
    for (key, value) in settings {
        check.arg("--set").arg(format!("{key}={value}"));
    }
    run(&mut check)
}

#[test]
fn an_http_port_behind_a_brokers_address_is_named_and_the_verdict_comes_last() {
    let server = Backend::start();
    let address = server.address.to_string();
    for (sink, key) in [("kafka", "kafka.brokers"), ("nats", "nats.servers")] {
        let settings = [("sink", sink), (key, &*address), ("relay.confirm_timeout", "2s")];
        let ended = check_connect(&settings);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let expected = format!("an HTTP server answers at {address}, not a broker");
        assert!(ended.stderr.contains(&expected), "{ended:?}");
        let last = ended.stderr.lines().last().unwrap();
        assert_eq!(last, "the configuration can be read, but does not work: 1 bad, see above");
        assert!(!ended.stderr.contains("is good"), "{ended:?}");

        let mut tail = program();
        tail.arg("tail").env("TOPIC_BRIDGE_APPS", APPS);
        for (key, value) in settings {
            tail.arg("--set").arg(format!("{key}={value}"));
        }
        let ended = run(&mut tail);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains(&expected), "{ended:?}");
    }
    let good = check_connect(&[]);
    assert_eq!(good.stderr.lines().last(), Some("the configuration is good"), "{good:?}");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_subject_of_another_stream_is_found_before_the_bridge_starts() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let name = &broker.target.name;
    broker.target.make(&json!({"subjects": [format!("{name}.>")]}));
    let (address, subject) = (&*broker.target.address, format!("{name}.created.{{sdk_app_id}}"));
    let settings = [
        ("sink", "nats"),
        ("nats.servers", address),
        ("nats.stream", "ANOTHER"),
        ("nats.subject", &subject),
    ];
    let ended = check_connect(&settings);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let expected = format!("cannot create the stream ANOTHER: {name} has the subjects");
    assert!(ended.stderr.contains(&expected), "{ended:?}");
}
