//! Connections to a broker that are cut or delayed in the middle of a batch. A client that reconnects
//! automatically, as NATS's would, sends what it still holds in the middle of what the bridge resends.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use crate::bridge::{Bridge, TOPIC_CREATED, body, is_delivered, run_and, signed};
use crate::broker::{self, Kind, Message, Target};
use crate::calls::{becomes, call_many, start};
use crate::http::Connection;
use crate::proxy::Proxy;

/// A bridge that reaches the broker through a proxy only.
fn start_behind_a_proxy(target: &Target, more: &[(&str, &str)]) -> (Bridge, Proxy) {
    let (_, address) = target.address.split_once("://").unwrap();
    let address = address.rsplit('@').next().unwrap().split('/').next().unwrap();
    let proxy = Proxy::start(address);
    let through = target.address.replace(address, &proxy.address.to_string());
    (start(&Target { address: through, ..target.clone() }, more), proxy)
}

/// Events of one group, in the order in which they were answered.
fn call_quickly(bridge: &Bridge, count: usize) -> Vec<String> {
    let mut connection = Connection::open(bridge.ingress);
    let topics: Vec<_> = (0..count).map(|number| format!("topic-{number}")).collect();
    for topic in &topics {
        let target = signed(TOPIC_CREATED, &[]);
        let reply = connection.request("POST", &target, &[], body(topic).as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    topics
}

/// `cuts` are in bytes, of which an event takes about a thousand.
fn cuts_break_no_order(kind: Kind, cuts: &[usize]) {
    let Some(broker) = broker::shared(kind) else { return };
    let patience = [("outbox.sync", "off"), ("relay.confirm_timeout", "30s")];
    let (bridge, proxy) = start_behind_a_proxy(&broker.target, &patience);
    let topics = call_quickly(&bridge, 4000);
    proxy.open(cuts);
    is_delivered(&bridge);
    let mut order: Vec<_> =
        broker.target.read(topics.len()).iter().map(Message::topic_id).collect();
    let mut seen = HashSet::new();
    order.retain(|topic| seen.insert(topic.clone()));
    let broken = order.iter().zip(&topics).position(|(found, expected)| found != expected);
    let around = broken.map(|at| &order[at.saturating_sub(2)..(at + 3).min(order.len())]);
    assert_eq!((order.len(), around), (topics.len(), None), "the order is broken at {broken:?}");
    let metrics = bridge.get("/metrics").body;
    let other = format!("publish_errors_total{{kind=\"other\",sink={:?}}} 0\n", kind.name());
    assert!(metrics.contains(&other), "a lost connection is no fault of an event: {metrics}");
    assert_eq!(proxy.cut(), cuts.len(), "each was in the middle of something");
    assert_eq!(proxy.opened(), cuts.len() + 1, "the client connects once, and never by itself");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn connections_to_nats_cut_in_the_middle_of_a_batch_break_no_order() {
    cuts_break_no_order(Kind::Nats, &[200_000, 500_000, 60_000, 350_000, 300_000]);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn connections_to_rabbitmq_cut_in_the_middle_of_a_batch_break_no_order() {
    cuts_break_no_order(Kind::Rabbitmq, &[200_000, 500_000, 60_000, 350_000, 300_000]);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_server_that_hangs_for_less_than_the_confirm_timeout_is_waited_for() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let patience = [("relay.confirm_timeout", "8s")];
    let (bridge, proxy) = start_behind_a_proxy(&broker.target, &patience);
    proxy.open(&[]);
    becomes(&bridge, "ready");
    let mut topics = call_many(&bridge, "before", 5);
    is_delivered(&bridge);
    let complaints = || bridge.log().matches("the sink takes no events").count();
    let before = complaints(); // of the proxy, which was closed at first
    proxy.hold_up(true);
    topics.extend(call_many(&bridge, "unconfirmed", 20));
    thread::sleep(Duration::from_secs(6)); // not to synchronise: so long it hangs
    assert_eq!(bridge.metric("topic_bridge_outbox_pending"), 20.0);
    proxy.hold_up(false);
    is_delivered(&bridge);
    assert_eq!(complaints(), before, "it does not count as away: {}", bridge.log());
    let errors = "topic_bridge_publish_errors_total{kind=\"timeout\",sink=\"nats\"}";
    assert_eq!(bridge.metric(errors), 0.0);
    let order: Vec<_> = broker.target.read(25).iter().map(Message::topic_id).collect();
    assert_eq!(order, topics);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn tail_ends_when_its_connection_is_lost() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let (bridge, proxy) = start_behind_a_proxy(&broker.target, &[]);
    proxy.open(&[]);
    becomes(&bridge, "ready");
    let ended = run_and(&mut bridge.command("tail"), "reading", || proxy.close());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("connection"), "{ended:?}");
}
