//! `ingress.answer = "delivered"`: an OK also says that the event is at the broker, or else, in time, that it is
//! durable here. Taking still never depends on the broker.

use std::collections::BTreeSet;
use std::thread;

use crate::bridge::{Bridge, body, eventually};
use crate::broker::{self, Kind, Verb};
use crate::calls::{
    Calls, against_each_broker, becomes, call, call_many, check_ids, is_delivered, start, topic_ids,
};

const DELIVERED: (&str, &str) = ("ingress.answer", "delivered");

against_each_broker! {
    an_event_that_was_answered_outlives_the_disk
    while_the_broker_is_away_the_answer_is_ok_and_durable
    a_broker_that_says_nothing_keeps_nobody_out
    a_stop_and_a_kill_lose_nothing
}

fn counts(bridge: &Bridge) -> (f64, f64) {
    (bridge.counted("delivered"), bridge.counted("accepted"))
}

/// The checks, for one broker each.
mod checks {
    use super::*;

    pub(super) fn an_event_that_was_answered_outlives_the_disk(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let bridge = start(&broker.target, &[DELIVERED]);
        becomes(&bridge, "ready");
        let topics = call_many(&bridge, "topic", 20);
        call(&bridge, "topic-0"); // a repeat waits, too
        assert_eq!(counts(&bridge), (20.0, 0.0));
        assert_eq!(bridge.counted("duplicate"), 1.0);
        assert_eq!(bridge.metric("topic_bridge_confirm_seconds_count"), 21.0);
        let outbox = bridge.outbox();
        bridge.kill();
        assert!(!outbox.exists(), "its folder goes with it");
        let messages = broker.target.read(20);
        assert_eq!(topic_ids(&messages), topics.into_iter().collect());
    }

    pub(super) fn while_the_broker_is_away_the_answer_is_ok_and_durable(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        let bridge = start(&broker.target, &[DELIVERED]);
        becomes(&bridge, "ready");
        let mut topics = call_many(&bridge, "before", 3);
        assert_eq!(counts(&bridge), (3.0, 0.0));
        broker.tell(Verb::Stop);
        topics.extend(call_many(&bridge, "at first", 1)); // may find out by itself
        becomes(&bridge, "degraded");
        topics.extend(call_many(&bridge, "during", 20));
        assert_eq!(counts(&bridge), (3.0, 21.0));
        broker.tell(Verb::Start);
        becomes(&bridge, "ready");
        topics.extend(call_many(&bridge, "after", 3));
        assert_eq!(bridge.counted("delivered"), 6.0);
        is_delivered(&bridge);
        let messages = broker.target.read(topics.len());
        assert_eq!(topic_ids(&messages), topics.into_iter().collect());
        check_ids(&messages);
    }

    /// Until `relay.confirm_timeout` nothing shows that the broker is not well.
    pub(super) fn a_broker_that_says_nothing_keeps_nobody_out(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        let more = [
            DELIVERED,
            ("ingress.delivered_by", "300ms"),
            ("ingress.max_in_flight", "2"),
            ("relay.confirm_timeout", "60s"),
        ];
        let bridge = start(&broker.target, &more);
        becomes(&bridge, "ready");
        call(&bridge, "before");
        broker.tell(Verb::Pause);
        let bridge = &bridge;
        thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    // One after another, as a commit takes no time: eight at once may be too many.
                    eventually("there is room", || {
                        (bridge.call(&body(&format!("silent-{number}"))).status == 200)
                            .then_some(())
                    });
                });
            }
        });
        assert_eq!(counts(bridge), (1.0, 8.0));
        broker.tell(Verb::Resume);
        is_delivered(bridge);
        assert_eq!(topic_ids(&broker.target.read(9)).len(), 9);
    }

    pub(super) fn a_stop_and_a_kill_lose_nothing(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let mut bridge = start(&broker.target, &[DELIVERED]);
        becomes(&bridge, "ready");
        let mut topics = BTreeSet::new();
        for prefix in ["stopped", "killed"] {
            let calls = Calls::start(&bridge, prefix);
            eventually("there are some", || (bridge.counted("delivered") >= 20.0).then_some(()));
            if prefix == "stopped" {
                bridge.stop();
                topics.extend(calls.stop());
                bridge = bridge.restart(&[]);
                becomes(&bridge, "ready");
            } else {
                bridge = bridge.restart(&[]); // kills the one before
                topics.extend(calls.stop());
            }
        }
        assert!(topics.len() >= 40, "{topics:?}");
        is_delivered(&bridge);
        let messages = broker.target.read(topics.len());
        let found = topic_ids(&messages);
        assert!(topics.is_subset(&found), "{:?}", topics.difference(&found).collect::<Vec<_>>());
        check_ids(&messages);
    }
}

#[test]
fn without_a_broker_each_answer_is_delivered() {
    let bridge = Bridge::start(&[DELIVERED]);
    call_many(&bridge, "topic", 50);
    assert_eq!(counts(&bridge), (50.0, 0.0));
    assert_eq!(bridge.call("{}").status, 400);
    assert_eq!(bridge.counted("malformed"), 1.0);
    let text = bridge.get("/metrics").body;
    assert!(text.contains("topic_bridge_confirm_seconds_count 50"), "{text}");
}

#[test]
fn a_durable_answer_does_not_wait_and_is_not_counted_as_delivered() {
    let bridge = Bridge::start(&[]);
    call_many(&bridge, "topic", 5);
    assert_eq!(counts(&bridge), (0.0, 5.0));
    assert_eq!(bridge.metric("topic_bridge_confirm_seconds_count"), 0.0);
}
