//! The contract that all three brokers share. Each test runs against each of the real servers.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::bridge::{self, APP, SAMPLE, TOPIC_CREATED, eventually, program, run};
use crate::broker::{self, Kind, Message, Target};
use crate::calls::{against_each_broker, becomes, call, call_many, is_delivered, start, topic_ids};
use crate::http;

against_each_broker! {
    events_arrive_complete_in_order_and_under_the_right_address
    in_binary_mode_attributes_are_headers
    the_trace_context_goes_along
    what_the_broker_needs_is_created_before_the_first_event
    without_leave_to_create_a_missing_target_is_explained_and_awaited
    tail_shows_each_event_as_a_line
    tail_misses_nothing_once_it_says_that_it_reads
    check_connect_says_what_is_missing
}

/// The checks, for one broker each.
mod checks {
    use super::*;

    pub(super) fn events_arrive_complete_in_order_and_under_the_right_address(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let bridge = start(&broker.target, &[]);
        assert_eq!(bridge.call(SAMPLE).status, 200);
        let mut expected = Vec::new();
        for number in 0..300 {
            let (topic, group) = (format!("topic-{number}"), format!("@TGS#group.{}", number % 7));
            let mut body: Value = serde_json::from_str(&bridge::body(&topic)).unwrap();
            body["GroupId"] = json!(group);
            assert_eq!(bridge.call(&body.to_string()).status, 200);
            expected.push((group, topic));
        }
        is_delivered(&bridge);
        let messages = broker.target.read(301);
        assert_eq!(messages.len(), 301);
        let published: Vec<_> = messages.iter().map(|message| message.body.clone()).collect();
        let mut stored = bridge.events();
        assert_eq!(stored.len(), 301);
        for event in &published {
            let at = stored.iter().position(|stored| stored == event).expect("as in the outbox");
            stored.remove(at);
        }

        let order: Vec<_> = messages.iter().map(Message::topic_id).collect();
        for group in 0..7 {
            let group = format!("@TGS#group.{group}");
            let wanted = expected.iter().filter(|(g, _)| *g == group).map(|(_, topic)| topic);
            let in_group = |message: &&Message| message.body["partitionkey"] == group.as_str();
            let found = messages.iter().filter(in_group).map(Message::topic_id);
            assert!(wanted.cloned().eq(found), "in order in {group}: {order:?}");
        }
        for message in &messages {
            check_address(kind, &broker.target, message);
            let content_type = "application/cloudevents+json; charset=UTF-8";
            match kind {
                Kind::Kafka => assert_eq!(message.header("content-type"), Some(content_type)),
                Kind::Nats => assert_eq!(message.header("Content-Type"), Some(content_type)),
                Kind::Rabbitmq => {
                    assert_eq!(message.raw["properties"]["content_type"], content_type);
                }
            }
        }
        if kind != Kind::Kafka {
            let all: Vec<_> = expected.iter().map(|(_, topic)| topic.clone()).collect();
            assert_eq!(order[1..], all, "one queue or stream keeps the order of all");
        }
        is_delivered(&bridge);
        let published = format!("topic_bridge_published_total{{sink={:?}}}", kind.name());
        assert_eq!(bridge.metric(&published), 301.0);
        assert_eq!(bridge.metric(&format!("topic_bridge_sink_up{{sink={:?}}}", kind.name())), 1.0);
    }

    /// Key, subject or routing key, and what the protocol has of its own.
    fn check_address(kind: Kind, target: &Target, message: &Message) {
        let event = &message.body;
        match kind {
            Kind::Kafka => {
                assert_eq!(message.raw["key"], event["partitionkey"]);
                // Where the Java clients would put it, by murmur2 of the key.
                let key = event["partitionkey"].as_str().unwrap();
                let partition = (murmur2(key.as_bytes()) & 0x7fff_ffff) % 3;
                assert_eq!(message.raw["partition"], partition, "of {key}");
            }
            Kind::Rabbitmq => {
                assert_eq!(message.raw["routing_key"], format!("topic.created.{APP}"));
                let properties = &message.raw["properties"];
                assert_eq!(properties["message_id"], event["id"]);
                assert_eq!(properties["delivery_mode"], 2);
                assert_eq!(properties["type"], event["type"]);
                assert_eq!(properties["app_id"], "topic-bridge");
                let accepted = event["data"]["accepted_at"].as_str().unwrap();
                let accepted = humantime::parse_rfc3339(accepted).unwrap();
                let seconds = accepted.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
                assert_eq!(properties["timestamp"], seconds);
            }
            Kind::Nats => {
                assert_eq!(message.raw["subject"], format!("{}.{APP}", target.name));
                assert_eq!(message.header("Nats-Msg-Id"), event["id"].as_str());
                assert_eq!(message.header("Nats-Expected-Stream"), Some(target.name.as_str()));
            }
        }
    }

    /// Kafka's hash of keys, as its documentation of the default partitioner has it.
    fn murmur2(data: &[u8]) -> u32 {
        const M: u32 = 0x5bd1_e995;
        let mut hash = 0x9747_b28c ^ u32::try_from(data.len()).unwrap();
        let mut chunks = data.chunks_exact(4);
        for chunk in &mut chunks {
            let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
            k = (k ^ (k >> 24)).wrapping_mul(M);
            hash = hash.wrapping_mul(M) ^ k;
        }
        let rest = chunks.remainder();
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        if !rest.is_empty() {
            hash = hash.wrapping_mul(M);
        }
        hash = (hash ^ (hash >> 13)).wrapping_mul(M);
        hash ^ (hash >> 15)
    }

    pub(super) fn in_binary_mode_attributes_are_headers(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let bridge = start(&broker.target, &[("event.encoding", "binary")]);
        let topic = "näme with 100% \"quotes\"";
        call(&bridge, topic);
        // A reader that comes before the topic, queue or stream finds nothing to read.
        is_delivered(&bridge);
        let message = broker.target.read(1).pop().unwrap();
        let event = bridge.events().pop().unwrap();
        assert_eq!(message.body, event["data"]);
        let prefix = match kind {
            Kind::Kafka => "ce_",
            Kind::Rabbitmq | Kind::Nats => "ce-",
        };
        let attributes = [
            "specversion",
            "id",
            "type",
            "source",
            "subject",
            "time",
            "dataschema",
            "partitionkey",
        ];
        for name in attributes {
            let mut expected = event[name].as_str().unwrap().to_owned();
            if kind == Kind::Nats && name == "subject" {
                expected = "n%C3%A4me with 100%25 \"quotes\"".into();
            }
            let header = message.header(&format!("{prefix}{name}"));
            assert_eq!(header, Some(expected.as_str()), "{name} in {message:?}");
        }
        match kind {
            Kind::Kafka => assert_eq!(message.header("content-type"), Some("application/json")),
            Kind::Nats => {
                assert_eq!(message.header("Content-Type"), Some("application/json"));
                assert_eq!(message.header("ce-datacontenttype"), Some("application/json"));
            }
            Kind::Rabbitmq => {
                assert_eq!(message.raw["properties"]["content_type"], "application/json");
                assert_eq!(message.raw["properties"]["message_id"], event["id"]);
            }
        }
    }

    pub(super) fn the_trace_context_goes_along(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let bridge = start(&broker.target, &[]);
        let brought = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (topic, header) in [
            ("traced", Some(format!("traceparent: {brought}"))),
            ("broken", Some("traceparent: 00-xyz".into())),
            ("untraced", None),
        ] {
            let target = bridge::signed(TOPIC_CREATED, &[]);
            let headers: Vec<_> = header.iter().map(String::as_str).collect();
            let body = bridge::body(topic);
            let reply = http::request(bridge.ingress, "POST", &target, &headers, body.as_bytes());
            assert_eq!(reply.status, 200);
        }
        is_delivered(&bridge);
        for message in broker.target.read(3) {
            let found = message.header("traceparent").unwrap();
            if message.topic_id() == "traced" {
                assert_eq!(found, brought);
            } else {
                let trace = message.body["id"].as_str().unwrap().replace('-', "");
                assert_eq!(found, format!("00-{trace}-{}-01", &trace[16..]), "of its own");
            }
        }
    }

    pub(super) fn what_the_broker_needs_is_created_before_the_first_event(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let bridge = start(&broker.target, &[]);
        becomes(&bridge, "ready");
        // Somebody else's client finds it, empty.
        assert!(broker.target.read(0).is_empty());
        call(&bridge, "the first");
        assert_eq!(topic_ids(&broker.target.read(1)), BTreeSet::from(["the first".into()]));
    }

    pub(super) fn without_leave_to_create_a_missing_target_is_explained_and_awaited(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let (setting, command) = match kind {
            Kind::Kafka => (("kafka.create_topic", "false"), "kafka-topics"),
            Kind::Rabbitmq => (("rabbitmq.declare", "passive"), "rabbitmq"),
            Kind::Nats => (("nats.create_stream", "false"), "nats stream add"),
        };
        let bridge = start(&broker.target, &[setting]);
        becomes(&bridge, "degraded");
        let topics = call_many(&bridge, "early", 5);
        let (status, readiness) = bridge.readiness();
        assert_eq!((status, &readiness["status"]), (200, &json!("degraded")));
        let reason = readiness["sink"]["reason"].as_str().unwrap();
        assert!(reason.contains(&broker.target.name) && reason.contains(command), "{reason}");
        let errors = format!(
            "topic_bridge_publish_errors_total{{kind=\"topology\",sink={:?}}}",
            kind.name()
        );
        eventually("the error is counted", || (bridge.metric(&errors) > 0.0).then_some(()));

        // Somebody creates it: here another bridge that may.
        let other = start(&broker.target, &[]);
        becomes(&other, "ready");
        becomes(&bridge, "ready");
        assert_eq!(topic_ids(&broker.target.read(5)), topics.into_iter().collect());
    }

    pub(super) fn tail_shows_each_event_as_a_line(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        for encoding in ["structured", "binary"] {
            let mut target = broker.target.clone();
            target.name += encoding;
            let bridge = start(&target, &[("event.encoding", encoding)]);
            call_many(&bridge, "tön", 10);
            is_delivered(&bridge);
            let ended = run(bridge.command("tail").args(["--from-start", "--count", "10"]));
            assert_eq!(ended.code, Some(0), "{ended:?}");
            let mut lines: Vec<Value> =
                ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            lines.sort_by_key(|event| event["time"].to_string() + &event["subject"].to_string());
            let mut events = bridge.events();
            events.sort_by_key(|event| event["time"].to_string() + &event["subject"].to_string());
            assert_eq!(lines, events, "{encoding}");
            // It took nothing away from others.
            assert_eq!(target.read(10).len(), 10);
        }
    }

    pub(super) fn tail_misses_nothing_once_it_says_that_it_reads(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let bridge = start(&broker.target, &[]);
        bridge::check_tail(&bridge);
    }

    pub(super) fn check_connect_says_what_is_missing(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let check = |more: &[(&str, &str)]| {
            let mut command = program();
            command.args(["check", "--connect", "--json"]);
            command.arg("--set").arg(format!("apps={}", bridge::APPS));
            for (key, value) in broker.target.settings() {
                command.arg("--set").arg(format!("{key}={value}"));
            }
            for (key, value) in more {
                command.arg("--set").arg(format!("{key}={value}"));
            }
            let ended = run(&mut command);
            let found: Value = serde_json::from_str(&ended.stdout).unwrap();
            (ended.code, found["findings"].as_array().unwrap().clone())
        };
        let has_bad = |findings: &[Value]| findings.iter().any(|f| f["verdict"] == "bad");

        let (code, findings) = check(&[]);
        assert_eq!(code, Some(0), "the bridge would create it: {findings:#?}");
        assert!(!has_bad(&findings));
        let (may_not, nowhere) = match kind {
            Kind::Kafka => (("kafka.create_topic", "false"), ("kafka.brokers", "127.0.0.1:1")),
            Kind::Rabbitmq => {
                (("rabbitmq.declare", "passive"), ("rabbitmq.url", "amqp://127.0.0.1:1/%2f"))
            }
            Kind::Nats => (("nats.create_stream", "false"), ("nats.servers", "nats://127.0.0.1:1")),
        };
        let (code, findings) = check(&[may_not]);
        assert_eq!(code, Some(1), "{findings:#?}");
        assert!(has_bad(&findings), "{findings:#?}");
        let (code, findings) = check(&[nowhere]);
        assert_eq!(code, Some(1));
        assert_eq!(
            (&findings[0]["point"], &findings[0]["verdict"]),
            (&json!("connection"), &json!("bad"))
        );

        let bridge = start(&broker.target, &[]);
        becomes(&bridge, "ready");
        let (code, findings) = check(&[may_not]);
        assert_eq!(code, Some(0), "{findings:#?}");
        assert!(broker.target.read(0).is_empty(), "a check publishes nothing");
    }
}
