//! RabbitMQ returns messages that no queue is bound for, on a connection that otherwise works. That
//! counts as a sink that is down, to be reported as such, and fixed if the bridge is allowed to.

use serde_json::json;

use crate::bridge::{body, eventually, is_delivered};
use crate::broker::{self, Kind, Message};
use crate::calls::{becomes, call, call_many, start};

fn topics_in_order(messages: &[Message]) -> Vec<String> {
    messages.iter().map(Message::topic_id).collect()
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_queue_that_was_deleted_is_declared_again_and_nothing_is_lost() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let bridge = start(&broker.target, &[]);
    call(&bridge, "before");
    is_delivered(&bridge);
    assert_eq!(topics_in_order(&broker.target.read(1)), ["before"]);
    for round in 0..3 {
        broker.target.make(&json!({"delete": "queue"})); // while nothing is on its way
        let topics = call_many(&bridge, &format!("after-{round}"), 60);
        is_delivered(&bridge);
        assert_eq!(topics_in_order(&broker.target.read(60)), topics);
    }
    becomes(&bridge, "ready");
    assert_eq!(bridge.metric("topic_bridge_sink_up{sink=\"rabbitmq\"}"), 1.0);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_sink_that_gives_everything_back_is_not_up_and_goes_on_in_order() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    broker.target.make(&json!({}));
    let settings = [("rabbitmq.declare", "none"), ("relay.retry_max", "30s")];
    let bridge = start(&broker.target, &settings);
    call(&bridge, "before");
    is_delivered(&bridge);
    broker.target.read(1);
    broker.target.make(&json!({"delete": "queue"}));
    let mut topics = call_many(&bridge, "waits", 700);
    eventually("it says so", || {
        let (status, readiness) = bridge.readiness();
        let reason = readiness["sink"]["reason"].as_str().unwrap_or_default().to_owned();
        assert_eq!(status, 200);
        let says_all = readiness["status"] == "degraded"
            && reason.starts_with("unroutable: no queue is bound")
            && reason.ends_with("700 events wait");
        says_all.then_some(())
    });
    assert_eq!(bridge.metric("topic_bridge_sink_up{sink=\"rabbitmq\"}"), 0.0);
    let warnings = || bridge.log().matches("the sink takes no events").count();
    crate::bridge::eventually("it is told once", || (warnings() == 1).then_some(()));

    broker.target.make(&json!({}));
    topics.extend(call_many(&bridge, "later", 20));
    is_delivered(&bridge);
    assert_eq!(topics_in_order(&broker.target.read(720)), topics);
    becomes(&bridge, "ready");
    assert_eq!(warnings(), 1);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_event_that_nothing_is_bound_for_holds_nobody_else_up() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    broker.target.make(&json!({"binding": "r.good"}));
    let settings = [("rabbitmq.declare", "none"), ("rabbitmq.routing_key", "r.{group_id}")];
    let bridge = start(&broker.target, &settings);
    let in_group = |group: &str, topic: &str| {
        let body = body(topic).replace("@TGS#2J4SZEAEL", group);
        assert_eq!(bridge.call(&body).status, 200);
    };
    in_group("bad", "stuck");
    for number in 0..50 {
        in_group("good", &format!("good-{number}"));
        eventually("only the one waits", || {
            (bridge.metric("topic_bridge_outbox_pending") == 1.0).then_some(())
        });
    }
    assert_eq!(broker.target.read(50).len(), 50);
    broker.target.make(&json!({"binding": "r.bad"}));
    is_delivered(&bridge);
    assert_eq!(topics_in_order(&broker.target.read(1)), ["stuck"]);
}
