//! What only JetStream refuses, and how it handles repeats.

use std::collections::BTreeSet;

use serde_json::json;

use crate::bridge::{body, eventually};
use crate::broker::{self, Kind};
use crate::calls::{becomes, call, call_many, is_delivered, start, topic_ids};
use crate::kafka::check_too_large;

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_stream_without_the_subject_is_explained_and_awaited() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let name = broker.target.name.clone();
    broker.target.make(&json!({"subjects": [format!("{name}-other.*")]}));
    let bridge = start(&broker.target, &[]);
    becomes(&bridge, "degraded");
    let reason = bridge.readiness().1["sink"]["reason"].to_string();
    assert!(reason.contains("nats stream edit") && reason.contains(&name), "{reason}");
    let topics = call_many(&bridge, "early", 5);
    broker.target.make(&json!({"subjects": [format!("{name}.*")]}));
    is_delivered(&bridge);
    assert_eq!(topic_ids(&broker.target.read(5)), topics.into_iter().collect());
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_event_too_large_for_the_stream_or_the_server_is_a_dead_letter() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let subjects = [format!("{}.*", broker.target.name)];
    broker.target.make(&json!({"subjects": subjects, "max_msg_size": 4000}));
    let bridge = start(&broker.target, &[("ingress.max_body_bytes", "8 MiB")]);
    check_too_large(&bridge, "max_msg_size");
    let found = topic_ids(&broker.target.read(2));
    assert_eq!(found, BTreeSet::from(["small".into(), "small too".into()]));

    // Larger than the server takes from anybody: the client sees that before it sends.
    let huge = body("huge").replace("MyFirstTopic", &"x".repeat(2 << 20));
    assert_eq!(bridge.call(&huge).status, 200);
    eventually("it is set aside", || {
        (bridge.metric("topic_bridge_dead_letters") == 2.0).then_some(())
    });
    becomes(&bridge, "degraded");
    call(&bridge, "small again");
    becomes(&bridge, "ready");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn what_is_sent_again_inside_the_window_is_stored_once() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let mut bridge = start(&broker.target, &[]);
    let topics = call_many(&bridge, "once", 50);
    is_delivered(&bridge);
    bridge.signal("TERM");
    assert!(bridge.ended().success());
    // As if the bridge had lost all memory of what was confirmed.
    let outbox = rusqlite::Connection::open(bridge.outbox()).unwrap();
    outbox
        .execute("UPDATE relay SET settled_through = 0, checksum = ?1", [crc32fast::hash(&[0; 8])])
        .unwrap();
    outbox.close().unwrap();
    let bridge = bridge.restart(&[]);
    is_delivered(&bridge);
    eventually("all were sent again", || {
        (bridge.metric("topic_bridge_published_total{sink=\"nats\"}") == 50.0).then_some(())
    });
    let messages = broker.target.read(50);
    assert_eq!(messages.len(), 50);
    assert_eq!(topic_ids(&messages), topics.into_iter().collect());
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_stream_that_is_deleted_is_noticed_and_made_again() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let bridge = start(&broker.target, &[]);
    call(&bridge, "before");
    is_delivered(&bridge);
    broker.target.make(&json!({"delete": true}));
    let topics = call_many(&bridge, "after", 10);
    is_delivered(&bridge);
    becomes(&bridge, "ready");
    assert_eq!(topic_ids(&broker.target.read(10)), topics.into_iter().collect());
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_stream_at_its_limit_holds_the_line_up() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let subjects = [format!("{}.*", broker.target.name)];
    broker.target.make(&json!({"subjects": subjects, "max_msgs": 5}));
    let bridge = start(&broker.target, &[]);
    let topics = call_many(&bridge, "many", 20);
    becomes(&bridge, "degraded");
    eventually("it says why", || bridge.log().contains("\"kind\":\"rejected\"").then_some(()));
    broker.target.make(&json!({"subjects": subjects, "max_msgs": 100}));
    is_delivered(&bridge);
    let messages = broker.target.read(20);
    let order: Vec<_> = messages.iter().map(crate::broker::Message::topic_id).collect();
    assert_eq!(order, topics, "in order in spite of it");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn of_several_servers_one_that_answers_is_enough() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let servers =
        format!("[\"nats://127.0.0.1:1\", {:?}, \"nats://127.0.0.1:2\"]", broker.target.address);
    let bridge = start(&broker.target, &[("nats.servers", &servers)]);
    call(&bridge, "found");
    is_delivered(&bridge);
    assert_eq!(topic_ids(&broker.target.read(1)), BTreeSet::from(["found".into()]));
    assert!(!bridge.log().contains("the sink takes no events"), "{}", bridge.log());
}
