//! What only RabbitMQ does: drops messages that no queue is bound for, blocks publishers, and refuses by
//! nack.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::bridge::{Bridge, body, eventually, now, signed_by};
use crate::broker::{self, Kind};
use crate::calls::{Calls, becomes, call_many, is_delivered, start, topic_ids};
use crate::http::Connection;
use crate::outbox_file::list;

fn call_in_group(bridge: &Bridge, group: &str, topic: &str) {
    let mut body: Value = serde_json::from_str(&body(topic)).unwrap();
    body["GroupId"] = json!(group);
    assert_eq!(bridge.call(&body.to_string()).status, 200);
}

fn says(bridge: &Bridge, kind: &str) {
    eventually(&format!("it tells of {kind}"), || {
        bridge.log().contains(&format!("\"kind\":{kind:?}")).then_some(())
    });
}

/// A missing exchange first: it holds all of them up, so that they come in one batch.
#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn unroutable_events_among_routable_ones_are_each_judged_rightly() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let settings = [("rabbitmq.declare", "none"), ("rabbitmq.routing_key", "r.{group_id}")];
    let bridge = start(&broker.target, &settings);
    let (mut routable, mut unroutable) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..150 {
        call_in_group(&bridge, "a", &format!("a-{number}"));
        call_in_group(&bridge, "b.c", &format!("b-{number}"));
        routable.insert(format!("a-{number}"));
        unroutable.insert(format!("b-{number}"));
    }
    becomes(&bridge, "degraded");
    says(&bridge, "topology");

    broker.target.make(&json!({"binding": "r.a"}));
    eventually("only the unroutable ones wait", || {
        (bridge.metric("topic_bridge_outbox_pending") == 150.0).then_some(())
    });
    assert_eq!(topic_ids(&broker.target.read(150)), routable);
    becomes(&bridge, "ready");
    let errors = "topic_bridge_publish_errors_total{kind=\"unroutable\",sink=\"rabbitmq\"}";
    assert!(bridge.metric(errors) >= 150.0);
    assert_eq!(bridge.metric("topic_bridge_published_total{sink=\"rabbitmq\"}"), 150.0);

    // A dot in an id is no structure: it is escaped.
    broker.target.make(&json!({"binding": "r.b%2Ec"}));
    is_delivered(&bridge);
    assert_eq!(topic_ids(&broker.target.read(150)), unroutable);
}

/// It once kept all that was delivered after it in the outbox, which was full after 2,067 events.
#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_event_that_waits_for_ever_does_not_fill_the_outbox() {
    const EVENTS: usize = 5000;
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    broker.target.make(&json!({"binding": "r.1"}));
    let bridge = start(
        &broker.target,
        &[
            ("apps", r#"[{sdk_app_id=1,tokens=["good"]},{sdk_app_id=2,tokens=["bad"]}]"#),
            ("rabbitmq.declare", "none"),
            ("rabbitmq.routing_key", "r.{sdk_app_id}"),
            ("outbox.history", "1s"),
            ("outbox.dedupe_window", "1s"),
            ("outbox.max_bytes", "1 MiB"),
        ],
    );
    let mut connection = Connection::open(bridge.ingress);
    let mut call = |app, token, topic: &str| {
        let target = signed_by(app, token, now());
        let reply = connection.request("POST", &target, &[], body(topic).as_bytes());
        assert_eq!(reply.status, 200, "{topic}: {reply:?}");
    };
    call(2, "bad", "waits");
    for number in 0..EVENTS {
        call(1, "good", &format!("topic {number}"));
        if number % 250 == 0 {
            eventually("only the unroutable one waits", || {
                (bridge.metric("topic_bridge_outbox_pending") == 1.0).then_some(())
            });
        }
    }
    let pending = list(&bridge.outbox(), &["--pending"]);
    let pending: Vec<_> = pending.iter().filter(|line| line["state"] == "deferred").collect();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0]["event"]["subject"], "waits");
    assert_eq!(pending[0]["position"], 1, "long after the history has passed it");

    broker.target.make(&json!({"binding": "r.2"}));
    is_delivered(&bridge);
    let found = topic_ids(&broker.target.read(EVENTS + 1));
    assert_eq!(found.len(), EVENTS + 1);
    assert!(found.contains("waits"));
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_memory_alarm_holds_the_line_up_and_is_told() {
    let Some(broker) = broker::alone(Kind::Rabbitmq) else { return };
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "ready");
    let mut topics = call_many(&bridge, "before", 5);
    is_delivered(&bridge);
    broker.target.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
    topics.extend(call_many(&bridge, "blocked", 20));
    becomes(&bridge, "degraded");
    says(&bridge, "blocked");
    let reason = bridge.readiness().1["sink"]["reason"].to_string();
    assert!(reason.contains("memory"), "{reason}");
    broker.target.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]);
    becomes(&bridge, "ready");
    is_delivered(&bridge);
    assert_eq!(topic_ids(&broker.target.read(25)), topics.into_iter().collect());
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_queue_that_rejects_holds_the_line_up_until_there_is_room() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let limits = json!({"x-max-length": 5, "x-overflow": "reject-publish"});
    broker.target.make(&json!({"queue": limits}));
    let bridge = start(&broker.target, &[("rabbitmq.declare", "passive")]);
    // The limit is a soft one: some more may get in before publishers are told.
    let calls = Calls::start(&bridge, "many");
    becomes(&bridge, "degraded");
    says(&bridge, "rejected");
    let topics = calls.stop();
    // Reading takes them out, and so makes room.
    assert_eq!(topic_ids(&broker.target.read(topics.len())), topics.into_iter().collect());
    is_delivered(&bridge);
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 0.0);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_user_who_may_not_write_is_told_so_and_recovers_when_he_may() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let user = broker.target.name.clone();
    broker.target.make(&json!({}));
    broker.target.rabbitmqctl(&["add_user", &user, "s3cret"]);
    broker.target.rabbitmqctl(&["set_permissions", &user, "^$", "^$", "^$"]);
    let credentials = [("rabbitmq.username", &*user), ("rabbitmq.password", "s3cret")];
    let settings = [credentials[0], credentials[1], ("rabbitmq.declare", "none")];
    let bridge = start(&broker.target, &settings);
    let topics = call_many(&bridge, "forbidden", 5);
    becomes(&bridge, "degraded");
    says(&bridge, "credentials");
    assert!(!bridge.log().contains("s3cret"));
    broker.target.rabbitmqctl(&["set_permissions", &user, "^$", ".*", "^$"]);
    is_delivered(&bridge);
    becomes(&bridge, "ready");
    assert_eq!(topic_ids(&broker.target.read(5)), topics.into_iter().collect());
    broker.target.rabbitmqctl(&["delete_user", &user]);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_exchange_that_is_deleted_is_noticed_and_made_again() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "ready");
    call_many(&bridge, "before", 5);
    is_delivered(&bridge);
    broker.target.make(&json!({"delete": true}));
    let topics = call_many(&bridge, "after", 10);
    is_delivered(&bridge);
    assert_eq!(topic_ids(&broker.target.read(10)), topics.into_iter().collect());
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_queue_declared_otherwise_is_explained() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    broker.target.make(&json!({"queue": {"x-max-length": 7}}));
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "degraded");
    says(&bridge, "topology");
    let reason = bridge.readiness().1["sink"]["reason"].to_string();
    assert!(reason.contains("x-max-length") && reason.contains("passive"), "{reason}");
    let bridge = bridge.restart(&[("rabbitmq.declare", "passive")]);
    becomes(&bridge, "ready");
}
