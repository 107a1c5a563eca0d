//! An outbox that an older release wrote is migrated completely: release 0.1.0 wrote `data/outbox-v2.db`,
//! and `data/README.md` says how, and what is in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tempfile::TempDir;

use crate::bridge::{Bridge, body, eventually, is_delivered, now};
use crate::broker::{self, Kind};
use crate::outbox_file::{ask, number};
use crate::preload::Clock;

/// The newest there is.
const VERSION: i64 = 4;

/// Of the last event in the file, 2026-11-24T09:50:07Z.
const WRITTEN_AT: i64 = 1_795_513_807;

/// The file is of one day: without this it would be too old for the history on most others.
const KEEP: (&str, &str) = ("outbox.history", "36500d");

/// No sink, so that what waited in the file still waits.
const NO_SINK: [(&str, &str); 3] =
    [("sink", "nats"), ("nats.servers", "nats://127.0.0.1:1"), ("relay.drain_timeout", "100ms")];
const DELIVERED: [(&str, &str); 1] = [("sink", "embedded")];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data").join(name)
}

/// The version in between was never released: its file is that of version 2, brought up to date by the program
/// of its day, with the same in it.
const OLDER: [&str; 2] = ["outbox-v2.db", "outbox-v3.db"];

/// What the release that wrote the file said of it.
fn golden(name: &str) -> String {
    fs::read_to_string(data(&format!("outbox-v2.{name}"))).unwrap()
}

fn copy() -> (TempDir, PathBuf) {
    copy_of(OLDER[0])
}

fn copy_of(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let outbox = folder.path().join("outbox.db");
    fs::copy(data(name), &outbox).unwrap();
    (folder, outbox)
}

fn start_on(outbox: &Path, sink: &[(&str, &str)]) -> Bridge {
    let path = [("outbox.path", outbox.to_str().unwrap()), KEEP];
    Bridge::start(&[&path, sink].concat())
}

/// An event's data is compared to the letter: what the program does not know of stays as it came.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    event: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

fn check_same(found: &str, golden: &str) {
    let lines = |text: &str| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(lines(found), lines(golden));
    for (found, golden) in found.lines().zip(golden.lines()) {
        let data = |line| {
            let line: Line = serde_json::from_str(line).unwrap();
            line.event.map(|event| event.data.get().to_owned())
        };
        assert_eq!(data(found), data(golden));
    }
}

#[test]
fn an_outbox_of_an_older_version_comes_through_whole() {
    OLDER.into_iter().for_each(check_whole);
}

fn check_whole(name: &str) {
    let (_folder, outbox) = copy_of(name);
    let mut bridge = start_on(&outbox, &NO_SINK);
    bridge.stop();
    assert_eq!(number(&outbox, "PRAGMA user_version"), VERSION);
    assert_eq!(number(&outbox, "PRAGMA application_id"), 0x5442_7267);
    let checked = "SELECT group_concat(integrity_check) = 'ok' FROM pragma_integrity_check";
    assert_eq!(number(&outbox, checked), 1);
    for rows in ["all", "pending", "dead", "quarantined"] {
        let filter = format!("--{rows}");
        let filter = if rows == "all" { vec![] } else { vec![filter.as_str()] };
        let found = ask(&outbox, &[&["list", "--limit", "1000"], &filter[..]].concat());
        check_same(&found, &golden(&format!("{rows}.jsonl")));
    }
    let status = |text: &str| {
        let mut status: Value = serde_json::from_str(text).unwrap();
        status["bytes_in_use"].take(); // the new tables take some
        status
    };
    assert_eq!(status(&ask(&outbox, &["status"])), status(&golden("status.json")));
    let checked = ask(&outbox, &["check"]);
    assert!(checked.contains(r#""is_good":true"#), "{name}: {checked}");

    // A second start finds nothing to do.
    let bridge = bridge.restart(&[]);
    assert!(!bridge.log().contains("migrated the outbox"), "{}", bridge.log());
    assert_eq!(bridge.metric("topic_bridge_outbox_pending"), 7.0);
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 2.0);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 3.0);
}

#[test]
fn what_waited_in_an_outbox_of_version_2_is_delivered_under_its_id() {
    let (_folder, outbox) = copy();
    let bridge = start_on(&outbox, &DELIVERED);
    is_delivered(&bridge);
    let golden: Vec<Value> =
        golden("all.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = golden.iter().map(|line| line["event"].clone()).collect();
    assert_eq!(bridge.events(), events);
    let state = |line: &Value| (line["position"].as_u64(), line["state"].clone());
    let expected: Vec<_> = golden
        .iter()
        .map(|line| {
            let state = if line["state"] == "dead" { "dead" } else { "delivered" };
            (line["position"].as_u64(), Value::from(state))
        })
        .collect();
    let found = ask(&outbox, &["list", "--limit", "1000"]);
    let found: Vec<_> =
        found.lines().map(|line| state(&serde_json::from_str(line).unwrap())).collect();
    assert_eq!(found, expected);
    assert_eq!(number(&outbox, "PRAGMA user_version"), VERSION);

    assert_eq!(bridge.call(&body("the next one")).status, 200);
    let last = bridge.events().pop().unwrap();
    assert_eq!(last["subject"], "the next one");
    assert_eq!(bridge.page("").header("next-after"), Some("20"));
}

#[test]
fn ids_in_an_outbox_of_version_2_are_remembered() {
    let (folder, outbox) = copy();
    let clock = Clock::new(folder.path());
    let half_an_hour_later = WRITTEN_AT + 1800 - now() as i64;
    let settings = [
        ("outbox.path", outbox.to_str().unwrap()),
        ("ingress.max_skew", "36500d"),
        ("outbox.dedupe_window", "1h"),
    ];
    let bridge = Bridge::start_with(&settings, clock.ahead(half_an_hour_later));
    for topic in ["recreated", "plain", "pending 1", "deferred 1"] {
        assert_eq!(bridge.call(&body(topic)).status, 200, "{topic}");
    }
    assert_eq!(bridge.events().len(), 19, "each was the platform's retry");

    let window = [("outbox.dedupe_window", "1m")];
    let bridge = bridge.restart_with(&window, clock.ahead(half_an_hour_later));
    for topic in ["recreated", "plain", "pending 1", "deferred 1"] {
        assert_eq!(bridge.call(&body(topic)).status, 200, "{topic}");
    }
    let events = bridge.events();
    let ids: BTreeMap<_, _> = events.iter().map(|event| (event["id"].as_str(), ())).collect();
    assert_eq!(
        (events.len(), ids.len()),
        (23, 23),
        "each was created anew, under an id of its own"
    );
    assert_eq!(number(&outbox, "PRAGMA user_version"), VERSION);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn what_waited_in_an_outbox_of_version_2_reaches_a_broker_with_its_trace() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let (_folder, outbox) = copy();
    let settings = broker.target.settings();
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let bridge = start_on(&outbox, &settings);
    is_delivered(&bridge);
    let expected: BTreeMap<String, Value> = golden("pending.jsonl")
        .lines()
        .map(|line| {
            let event = serde_json::from_str::<Value>(line).unwrap()["event"].take();
            (event["id"].as_str().unwrap().to_owned(), event)
        })
        .collect();
    let messages = eventually("all arrive", || {
        let messages = broker.target.read(expected.len());
        (messages.len() == expected.len()).then_some(messages)
    });
    let found: BTreeMap<String, Value> = messages
        .iter()
        .map(|message| (message.header("Nats-Msg-Id").unwrap().to_owned(), message.body.clone()))
        .collect();
    assert_eq!(found, expected);
    for (topic, trace) in [("deferred 2, traced", 0xb2), ("pending 2, traced", 0xc3)] {
        let message = messages.iter().find(|message| message.topic_id() == topic).unwrap();
        let expected = format!("00-{trace:032x}-{trace:016x}-01");
        assert_eq!(message.header("traceparent"), Some(expected.as_str()), "{topic}");
    }
    assert_eq!(number(&outbox, "PRAGMA user_version"), VERSION);
}
