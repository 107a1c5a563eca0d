//! What only Kafka refuses.

use std::collections::BTreeSet;

use serde_json::json;

use crate::bridge::{Bridge, body, eventually};
use crate::broker::{self, Kind, Verb};
use crate::brokers::{becomes, call, call_many, is_delivered, start, topic_ids};

/// Three events, of which the second is too large for the broker, for good.
pub(crate) fn check_too_large(bridge: &Bridge, hint: &str) {
    call(bridge, "small");
    let large = body("large").replace("MyFirstTopic", &"x".repeat(8000));
    assert_eq!(bridge.call(&large).status, 200);
    call(bridge, "small too");
    eventually("the large one is set aside", || {
        (bridge.metric("topic_bridge_dead_letters") == 1.0).then_some(())
    });
    is_delivered(bridge);
    becomes(bridge, "ready");
    let mut list = crate::bridge::program();
    list.args(["outbox", "list", "--dead", "--json", "--set"]);
    list.arg(format!("outbox.path={}", bridge.outbox().display()));
    let listed = crate::bridge::run(&mut list).stdout;
    assert!(listed.contains("large") && listed.contains(hint), "{listed}");
    assert_eq!(bridge.events().len(), 3, "the event stream shows it all the same");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_event_too_large_is_a_dead_letter_and_the_line_moves_on() {
    let Some(broker) = broker::shared(Kind::Kafka) else { return };
    broker.target.make(&json!({"max.message.bytes": "4000"}));
    let bridge = start(&broker.target, &[]);
    check_too_large(&bridge, "max.message.bytes");
    let found = topic_ids(&broker.target.read(2));
    assert_eq!(found, BTreeSet::from(["small".into(), "small too".into()]));
    let errors = "topic_bridge_publish_errors_total{kind=\"too_large\",sink=\"kafka\"}";
    assert!(bridge.metric(errors) >= 1.0);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn too_few_replicas_in_sync_are_waited_for() {
    let Some(broker) = broker::alone(Kind::Kafka) else { return };
    if !broker.target.broker.has("kafka-2") {
        eprintln!("SKIPPED: there is no second Kafka here");
        return;
    }
    broker.target.broker.tell("kafka-2", Verb::Start).unwrap();
    broker.target.make(&json!({"replicas": 2, "min.insync.replicas": "2"}));
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "ready");
    let mut topics = call_many(&bridge, "replicated", 10);
    is_delivered(&bridge);
    broker.target.broker.tell("kafka-2", Verb::Stop).unwrap();
    topics.extend(call_many(&bridge, "waiting", 10));
    becomes(&bridge, "degraded");
    eventually("it says why", || bridge.log().contains("\"kind\":\"blocked\"").then_some(()));
    assert_eq!(bridge.metric("topic_bridge_outbox_pending"), 10.0);
    // One replica may do again: an operator's way out, and the broker that is gone need not come back.
    broker.target.make(&json!({"min.insync.replicas": "1"}));
    is_delivered(&bridge);
    becomes(&bridge, "ready");
    assert_eq!(topic_ids(&broker.target.read(20)), topics.into_iter().collect());
}

#[test]
fn a_property_that_librdkafka_does_not_know_is_a_fault_of_the_configuration() {
    for subcommand in ["serve", "check"] {
        let mut command = crate::bridge::program();
        command.args([subcommand, "--set", "sink=kafka"]);
        command.args(["--set", "kafka.properties.no.such.thing=1"]);
        command.arg("--set").arg(format!("apps={}", crate::bridge::APPS));
        let ended = crate::bridge::run(&mut command);
        assert_eq!(ended.code, Some(78), "{ended:?}");
        assert!(ended.stderr.contains("no.such.thing"), "{ended:?}");
    }
}
