//! A queue, topic or stream that is removed while the bridge is running, and what an idle bridge does
//! about it before the next event.

use std::collections::HashSet;

use serde_json::json;

use crate::bridge::{Bridge, eventually};
use crate::broker::{self, Kind, Message, Target};
use crate::calls::{becomes, call_many, is_delivered, start};

/// Waits for all of `topics` to arrive; the first of each in this order.
fn arrive_in_order(target: &Target, topics: &[String]) {
    let mut order: Vec<_> = target.read(topics.len()).iter().map(Message::topic_id).collect();
    let mut seen = HashSet::new();
    order.retain(|topic| seen.insert(topic.clone()));
    assert_eq!(order, topics);
}

/// Before the first event finds out: nothing is ever told to be wrong.
fn an_idle_bridge_makes_it_again(kind: Kind, is_back: impl Fn(&Bridge, &Target) -> bool) {
    let Some(broker) = broker::shared(kind) else { return };
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "ready");
    call_many(&bridge, "before", 5);
    is_delivered(&bridge);
    broker.target.make(&json!({"delete": true}));
    eventually("it is back", || is_back(&bridge, &broker.target).then_some(()));
    let topics = call_many(&bridge, "after", 5);
    is_delivered(&bridge);
    arrive_in_order(&broker.target, &topics);
    assert!(!bridge.log().contains("the sink takes no events"), "{}", bridge.log());
    let metrics = bridge.get("/metrics").body;
    let errors: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("topic_bridge_publish_errors_total{"))
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_idle_bridge_makes_a_deleted_queue_again() {
    an_idle_bridge_makes_it_again(Kind::Rabbitmq, |_, target| {
        let bindings =
            target.rabbitmqctl(&["list_bindings", "source_name", "destination_name", "--silent"]);
        let wanted = [target.name.as_str(); 2];
        bindings.lines().any(|binding| binding.split('\t').eq(wanted))
    });
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_idle_bridge_makes_a_deleted_topic_again() {
    an_idle_bridge_makes_it_again(Kind::Kafka, |bridge, _| {
        bridge.log().matches("created the missing Kafka topic").count() == 2
    });
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_idle_bridge_makes_a_deleted_stream_again() {
    an_idle_bridge_makes_it_again(Kind::Nats, |bridge, _| {
        bridge.log().matches("created the stream").count() == 2
    });
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_deleted_queue_that_others_declare_is_missed_by_name_and_awaited() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    broker.target.make(&json!({}));
    let bridge = start(&broker.target, &[("rabbitmq.declare", "passive")]);
    becomes(&bridge, "ready");
    broker.target.make(&json!({"delete": "queue"}));
    let topics = call_many(&bridge, "waiting", 30);
    eventually("it is missed by name", || {
        let reason = bridge.readiness().1["sink"]["reason"].to_string();
        let name = format!("there is no queue \\\"{}\\\"", broker.target.name);
        reason.contains(&name).then_some(())
    });
    assert_eq!(bridge.metric("topic_bridge_outbox_pending"), 30.0);
    broker.target.make(&json!({}));
    is_delivered(&bridge);
    arrive_in_order(&broker.target, &topics);
}

/// Kafka and JetStream confirm nothing that goes nowhere, but their clients remember what was there.
fn a_deleted_target_is_made_again(kind: Kind) {
    let Some(broker) = broker::shared(kind) else { return };
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "ready");
    for round in 0..2 {
        call_many(&bridge, &format!("before-{round}"), 5);
        is_delivered(&bridge);
        broker.target.make(&json!({"delete": true}));
        let topics = call_many(&bridge, &format!("after-{round}"), 50);
        is_delivered(&bridge);
        arrive_in_order(&broker.target, &topics);
    }
    becomes(&bridge, "ready");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_topic_deleted_while_nothing_is_on_its_way_is_made_again_and_gets_everything() {
    a_deleted_target_is_made_again(Kind::Kafka);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_stream_deleted_while_nothing_is_on_its_way_is_made_again_and_gets_everything() {
    a_deleted_target_is_made_again(Kind::Nats);
}
