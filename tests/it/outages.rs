//! Brokers that are away, crash, or come back, and a bridge that is killed: nothing that was answered OK
//! is lost.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::bridge::{Bridge, eventually};
use crate::broker::{self, Alone, Kind, Verb};
use crate::calls::{
    Calls, against_each_broker, becomes, call, call_many, check_ids, is_delivered, start, topic_ids,
};

against_each_broker! {
    callbacks_go_on_while_the_broker_is_stopped
    callbacks_go_on_while_the_broker_is_frozen
    callbacks_go_on_while_the_broker_is_killed_and_started_again
    what_a_broker_had_not_confirmed_when_it_died_is_sent_again
    what_was_not_confirmed_in_time_and_died_with_the_broker_is_sent_again
    a_bridge_starts_while_the_broker_is_away
    an_idle_bridge_notices_that_the_broker_is_gone_and_back
    what_was_answered_ok_survives_kills_of_the_bridge
    an_event_on_its_way_at_a_stop_is_delivered_before_the_end
    a_stop_while_the_broker_is_known_to_be_away_does_not_wait_and_says_what_it_keeps
}

/// The checks, for one broker each.
mod checks {
    use super::*;

    pub(super) fn callbacks_go_on_while_the_broker_is_stopped(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        outage(&broker, Verb::Stop, Verb::Start);
    }

    pub(super) fn callbacks_go_on_while_the_broker_is_frozen(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        outage(&broker, Verb::Pause, Verb::Resume);
    }

    pub(super) fn callbacks_go_on_while_the_broker_is_killed_and_started_again(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        outage(&broker, Verb::Kill, Verb::Start);
    }

    /// Before, during and after an outage, callbacks are answered OK, and all of them arrive.
    fn outage(broker: &Alone, down: Verb, up: Verb) {
        let bridge = start(&broker.target, &[]);
        becomes(&bridge, "ready");
        if let Verb::Kill = down {
            prepare_for_a_kill(broker, &bridge);
        }
        let mut topics = call_many(&bridge, "before", 20);
        is_delivered(&bridge);
        let calls = Calls::start(&bridge, "during");
        broker.tell(down);
        becomes(&bridge, "degraded");
        let (status, readiness) = bridge.readiness();
        assert_eq!((status, &readiness["status"]), (200, &json!("degraded")));
        assert!(!readiness["sink"]["reason"].as_str().unwrap().is_empty());
        let sink_up = format!("topic_bridge_sink_up{{sink={:?}}}", broker.target.kind.name());
        assert_eq!(bridge.metric(&sink_up), 0.0);
        topics.extend(call_many(&bridge, "while it is down", 20));
        broker.tell(up);
        becomes(&bridge, "ready");
        topics.extend(calls.stop());
        topics.extend(call_many(&bridge, "after", 20));
        is_delivered(&bridge);
        let messages = broker.target.read(topics.len());
        let expected: BTreeSet<_> = topics.into_iter().collect();
        assert_eq!(topic_ids(&messages), expected);
        check_ids(&messages);
        if broker.target.kind == Kind::Nats {
            assert_eq!(messages.len(), expected.len(), "JetStream stores no repeat");
        }
        let warnings = bridge.log().matches("the sink takes no events").count();
        assert!(warnings <= 5, "told {warnings} times:\n{}", bridge.log());
        assert_eq!(bridge.metric(&sink_up), 1.0);
    }

    /// RabbitMQ writes down that a quorum queue exists only minutes later, or when it is stopped. Killed
    /// before, it comes back with a queue that has no leader and confirms nothing.
    fn prepare_for_a_kill(broker: &Alone, bridge: &Bridge) {
        if broker.target.kind == Kind::Rabbitmq {
            broker.tell(Verb::Stop);
            broker.tell(Verb::Start);
            becomes(bridge, "ready");
        }
    }

    pub(super) fn what_a_broker_had_not_confirmed_when_it_died_is_sent_again(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        // Longer than the test: what is noticed is the loss of the connection.
        let bridge = start(&broker.target, &[("relay.confirm_timeout", "60s")]);
        becomes(&bridge, "ready");
        prepare_for_a_kill(&broker, &bridge);
        let mut topics = call_many(&bridge, "before", 5);
        is_delivered(&bridge);
        broker.tell(Verb::Pause);
        topics.extend(call_many(&bridge, "unconfirmed", 20));
        // For the first of them to be handed over, which nothing tells. Later would be no failure, but
        // would show less.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(bridge.metric("topic_bridge_outbox_pending"), 20.0);
        broker.tell(Verb::Kill);
        broker.tell(Verb::Start);
        is_delivered(&bridge);
        let messages = broker.target.read(topics.len());
        assert_eq!(topic_ids(&messages), topics.into_iter().collect());
        check_ids(&messages);
    }

    /// A frozen broker that goes on takes what waits in its sockets; one that is killed has lost it.
    pub(super) fn what_was_not_confirmed_in_time_and_died_with_the_broker_is_sent_again(
        kind: Kind,
    ) {
        let Some(broker) = broker::alone(kind) else { return };
        let bridge = start(&broker.target, &[]);
        becomes(&bridge, "ready");
        prepare_for_a_kill(&broker, &bridge);
        broker.tell(Verb::Pause);
        let topics = call_many(&bridge, "too late", 20);
        becomes(&bridge, "degraded");
        broker.tell(Verb::Kill);
        broker.tell(Verb::Start);
        is_delivered(&bridge);
        let messages = broker.target.read(topics.len());
        assert_eq!(topic_ids(&messages), topics.into_iter().collect());
        check_ids(&messages);
    }

    pub(super) fn a_bridge_starts_while_the_broker_is_away(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        broker.tell(Verb::Stop);
        let bridge = start(&broker.target, &[]);
        becomes(&bridge, "degraded");
        let topics = call_many(&bridge, "early", 20);
        broker.tell(Verb::Start);
        becomes(&bridge, "ready");
        is_delivered(&bridge);
        assert_eq!(topic_ids(&broker.target.read(20)), topics.into_iter().collect());
    }

    pub(super) fn an_idle_bridge_notices_that_the_broker_is_gone_and_back(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        let bridge = start(&broker.target, &[]);
        becomes(&bridge, "ready");
        broker.tell(Verb::Stop);
        becomes(&bridge, "degraded");
        broker.tell(Verb::Start);
        becomes(&bridge, "ready");
        call(&bridge, "the first");
        is_delivered(&bridge);
        eventually("it is told once", || {
            (bridge.log().matches("the sink takes events again").count() == 1).then_some(())
        });
    }

    pub(super) fn what_was_answered_ok_survives_kills_of_the_bridge(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let mut answered = Vec::new();
        let mut bridge = start(&broker.target, &[]);
        for round in 0..10_u64 {
            let published = format!("topic_bridge_published_total{{sink={:?}}}", kind.name());
            let calls = Calls::start(&bridge, &format!("round-{round}"));
            eventually("it delivers", || (bridge.metric(&published) > 20.0).then_some(()));
            let pause = Duration::from_millis(round % 5 * 3);
            thread::sleep(pause); // not to synchronise: the kill is to come at various moments
            bridge.signal("KILL");
            answered.extend(calls.stop());
            bridge = bridge.restart(&[]);
        }
        is_delivered(&bridge);
        let messages = broker.target.read(answered.len());
        let found = topic_ids(&messages);
        let lost: Vec<_> = answered.iter().filter(|topic| !found.contains(*topic)).collect();
        assert!(lost.is_empty(), "answered OK and not in the broker: {lost:?}");
        check_ids(&messages);
        if kind == Kind::Nats {
            assert_eq!(messages.len(), found.len(), "JetStream stores no repeat");
        }
    }

    pub(super) fn an_event_on_its_way_at_a_stop_is_delivered_before_the_end(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let mut bridge = start(&broker.target, &[]);
        becomes(&bridge, "ready");
        let topics = call_many(&bridge, "late", 50);
        bridge.signal("TERM");
        assert!(bridge.ended().success());
        assert!(!bridge.log().contains("stopped before"), "{}", bridge.log());
        assert_eq!(topic_ids(&broker.target.read(50)), topics.into_iter().collect());
    }

    pub(super) fn a_stop_while_the_broker_is_known_to_be_away_does_not_wait_and_says_what_it_keeps(
        kind: Kind,
    ) {
        let Some(broker) = broker::alone(kind) else { return };
        for (down, up) in [(Verb::Stop, Verb::Start), (Verb::Pause, Verb::Resume)] {
            // To be seen: it would wait for longer than a test does.
            let mut bridge = start(&broker.target, &[("relay.drain_timeout", "10m")]);
            becomes(&bridge, "ready");
            broker.tell(down);
            becomes(&bridge, "degraded");
            let topics = call_many(&bridge, &format!("{down:?}"), 20);
            bridge.signal("TERM");
            assert!(bridge.ended().success());
            let said = bridge.logged("stopped before every event was delivered").pop().unwrap();
            assert_eq!(said["fields"]["left"], 20, "{said}");
            let reason = said["fields"]["reason"].as_str().unwrap();
            assert!(reason.starts_with("the sink is away: "), "{reason}");
            broker.tell(up);
            let bridge = bridge.restart(&[]);
            is_delivered(&bridge);
            let found = topic_ids(&broker.target.read(20));
            assert!(topics.into_iter().all(|topic| found.contains(&topic)), "{found:?}");
        }
    }
}
