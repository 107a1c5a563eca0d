//! The clock is not trusted: one that was briefly ahead loses nothing, and what it left in the outbox
//! stalls nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::bridge::{Bridge, body, eventually, is_delivered};
use crate::broker::{self, Kind};
use crate::calls::topic_ids;
use crate::preload::Clock;

const DAY: i64 = 24 * 3600;

/// The platform's clock is right, and the bridge's is not.
const ANY_TIME: (&str, &str) = ("ingress.max_skew", "36500d");

fn ids(bridge: &Bridge) -> BTreeSet<String> {
    bridge.events().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_topic_that_a_clock_ahead_has_seen_is_no_duplicate_when_it_is_created_anew() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path());
    let bridge = Bridge::start_with(&[ANY_TIME], clock.ahead(365 * DAY));
    assert_eq!(bridge.call(&body("topic")).status, 200);
    assert_eq!(ids(&bridge).len(), 1);
    let bridge = bridge.restart_with(&[], clock.ahead(180 * DAY));
    assert_eq!(bridge.call(&body("topic")).status, 200);
    assert_eq!(ids(&bridge).len(), 2, "two events, each under an id of its own");
    assert_eq!(bridge.call(&body("topic")).status, 200);
    assert_eq!(ids(&bridge).len(), 2, "this one was the platform's retry");
    // And as the clock is set back in small steps, inside the window, a retry is still one.
    let bridge = bridge.restart_with(&[], clock.ahead(180 * DAY - 60));
    assert_eq!(bridge.call(&body("topic")).status, 200);
    assert_eq!(ids(&bridge).len(), 2, "a minute back is inside the window");
}

#[test]
fn what_a_clock_ahead_accepted_goes_from_the_history_in_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path());
    let history = [ANY_TIME, ("outbox.history", "2s"), ("outbox.dedupe_window", "1s")];
    let bridge = Bridge::start_with(&history, clock.ahead(365 * DAY));
    assert_eq!(bridge.call(&body("from the future")).status, 200);
    is_delivered(&bridge);
    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.call(&body("from today")).status, 200);
    eventually("both are gone", || bridge.events().is_empty().then_some(()));
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn what_a_clock_ahead_deferred_is_tried_again_soon() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path());
    broker.target.make(&json!({"binding": "r.a"}));
    let settings = broker.target.settings();
    let settings = settings.iter().map(|(key, value)| (*key, value.as_str()));
    let more = [ANY_TIME, ("rabbitmq.declare", "none"), ("rabbitmq.routing_key", "r.{group_id}")];
    let settings: Vec<_> = settings.chain(more).collect();
    let bridge = Bridge::start_with(&settings, clock.ahead(365 * DAY));
    let mut unroutable: Value = serde_json::from_str(&body("waits")).unwrap();
    unroutable["GroupId"] = json!("b");
    assert_eq!(bridge.call(&unroutable.to_string()).status, 200);
    let errors = "topic_bridge_publish_errors_total{kind=\"unroutable\",sink=\"rabbitmq\"}";
    eventually("it was tried", || (bridge.metric(errors) >= 1.0).then_some(()));

    let bridge = bridge.restart(&[]);
    broker.target.make(&json!({"binding": "r.b"}));
    is_delivered(&bridge);
    assert_eq!(topic_ids(&broker.target.read(1)), BTreeSet::from(["waits".to_owned()]));
}
