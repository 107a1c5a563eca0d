//! The private listener: both forms of the event stream, health and metrics. A reader that says where it
//! stopped gets every later event exactly once, in order, and is told what it missed.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bridge::{Bridge, TOKEN, body, check_tail, eventually, program, run};
use crate::http::{self, Connection};

/// One server-sent event.
#[derive(Debug, Default, Clone, PartialEq)]
struct Message {
    id: Option<u64>,
    event: Option<String>,
    data: String,
}

/// The complete messages of a stream in chunks; lines of the chunks themselves end with `\r`.
fn messages(text: &str) -> Vec<Message> {
    let (mut messages, mut message) = (Vec::new(), Message::default());
    for line in text.split_inclusive('\n').filter(|line| !line.ends_with("\r\n")) {
        match line.strip_suffix('\n').map(|line| line.split_once(": ").unwrap_or((line, ""))) {
            Some(("", "")) if message == Message::default() => {} // after a comment
            Some(("", "")) => messages.push(std::mem::take(&mut message)),
            Some(("", _comment)) => {}
            Some(("id", id)) => message.id = Some(id.parse().unwrap()),
            Some(("event", event)) => message.event = Some(event.to_owned()),
            Some(("data", data)) => message.data.push_str(data),
            Some(_) => panic!("{line:?} in {text}"),
            None => {} // cut off
        }
    }
    messages
}

/// The next messages, at least so many, and maybe a torn one behind them if `size` is reached first.
fn read_some(stream: &mut Connection, count: usize, size: usize) -> Vec<Message> {
    let text = stream.read_until(|text| {
        assert!(!text.ends_with(": idle\n\n\r\n"), "nothing more came in 15 s");
        let is_whole = text.ends_with("\n\n\r\n");
        text.len() > size || is_whole && text.matches("\ndata: ").count() >= count
    });
    messages(&text)
}

fn read(stream: &mut Connection, count: usize) -> Vec<Message> {
    read_some(stream, count, usize::MAX)
}

fn lines(bridge: &Bridge, query: &str) -> Vec<String> {
    bridge.page(query).body.lines().map(str::to_owned).collect()
}

fn call(bridge: &Bridge, topics: std::ops::RangeInclusive<u32>) {
    for number in topics {
        assert_eq!(bridge.call(&body(&format!("topic {number}"))).status, 200);
    }
}

#[test]
fn both_forms_show_the_same_events_from_wherever_one_asks() {
    let bridge = Bridge::start(&[]);
    call(&bridge, 1..=5);
    let all = lines(&bridge, "");
    let topic = |line: &String| {
        serde_json::from_str::<Value>(line).unwrap()["subject"].as_str().unwrap().to_owned()
    };
    let topics: Vec<_> = all.iter().map(topic).collect();
    assert_eq!(topics, ["topic 1", "topic 2", "topic 3", "topic 4", "topic 5"]);

    let check = |query: &str, header: &[&str], after: usize| {
        let found = read(&mut bridge.stream(&format!("/events{query}"), header), 5 - after);
        let expected: Vec<_> = (after..5)
            .map(|at| Message { id: Some(at as u64 + 1), event: None, data: all[at].clone() })
            .collect();
        assert_eq!(found, expected, "{query} {header:?}");
        let header = [&["Accept: application/x-ndjson"], header].concat();
        let page = http::get(bridge.admin, &format!("/events{query}"), &header);
        assert_eq!(page.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(page.header("next-after"), Some("5"));
        assert_eq!(page.header("missed-events"), None);
        assert_eq!(page.body.lines().collect::<Vec<_>>(), all[after..], "{query} {header:?}");
    };
    check("?from=start", &[], 0);
    check("?after=0", &[], 0);
    check("?after=3", &[], 3);
    check("", &["Last-Event-ID: 2"], 2);
    check("?from=start&unknown=x", &["last-event-id: 4"], 4);
    check("?after=1", &["Last-Event-ID: 4"], 4);

    // By default a stream begins now.
    for (next, query) in [(6, ""), (7, "?from=now")] {
        let mut stream = bridge.stream(&format!("/events{query}"), &[]);
        call(&bridge, next..=next);
        let found = read(&mut stream, 1);
        assert_eq!((found[0].id, found.len()), (Some(next.into()), 1), "{query}");
    }
}

#[test]
fn a_page_is_as_long_as_asked_and_says_where_the_next_one_begins() {
    let bridge = Bridge::start(&[]);
    call(&bridge, 1..=5);
    let all = lines(&bridge, "");
    let check = |query: &str, expected: &[String], next_after: &str| {
        let page = bridge.page(query);
        assert_eq!(page.body.lines().collect::<Vec<_>>(), expected, "{query}");
        assert_eq!(page.header("next-after"), Some(next_after), "{query}");
    };
    check("?limit=2", &all[..2], "2");
    check("?limit=2&after=2", &all[2..4], "4");
    check("?limit=2&after=4", &all[4..], "5");
    check("?limit=2&after=5", &[], "5");
    check("?from=now", &[], "5");
    check("?limit=99999999", &all, "5");
    check("?after=5&wait=1ms", &[], "5");
    check("?wait=10m", &all, "5");
}

#[test]
fn a_page_that_waits_comes_with_the_first_event() {
    let bridge = Bridge::start(&[]);
    for number in 1..=5 {
        let mut reader = Connection::open(bridge.admin);
        let target = format!("/events?after={}&wait=20s", number - 1);
        reader.send(&http::head("GET", &target, &["Accept: application/x-ndjson"], 0));
        let since = Instant::now();
        call(&bridge, number..=number);
        let page = reader.reply().unwrap();
        assert_eq!(page.header("next-after"), Some(number.to_string().as_str()));
        assert_eq!(page.body.lines().count(), 1);
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    }
}

/// New events as fast as they go, from as many connections as make the commits large.
fn load(bridge: &Bridge, count: u64) -> Child {
    program()
        .args(["send", &format!("http://{}/", bridge.ingress), "--token", TOKEN])
        .args(["--count", &count.to_string(), "--concurrency", "16"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_reader_that_comes_back_in_live_traffic_finds_neither_gap_nor_repeat() {
    const EVENTS: u64 = 5000;
    let bridge = Bridge::start(&[]);
    let mut load = load(&bridge, EVENTS);
    let (mut found, mut last, mut connections) = (Vec::new(), 0, 0);
    while last < EVENTS {
        connections += 1;
        let mut stream = match connections % 2 {
            0 => bridge.stream(&format!("/events?after={last}"), &[]),
            _ => bridge.stream("/events?from=start", &[&format!("Last-Event-ID: {last}")]),
        };
        let size = connections * 3_001 % 200_000;
        let new = read_some(&mut stream, (EVENTS - last) as usize, size);
        last = new.last().and_then(|message| message.id).unwrap_or(last);
        found.extend(new);
    }
    assert!(load.wait().unwrap().success());
    let positions: Vec<_> = found.iter().map(|message| message.id).collect();
    assert_eq!(positions, (1..=EVENTS).map(Some).collect::<Vec<_>>());
    let stored: Vec<_> = bridge.events().iter().map(|event| event["id"].clone()).collect();
    let id = |message: &Message| serde_json::from_str::<Value>(&message.data).unwrap()["id"].take();
    assert_eq!(found.iter().map(id).collect::<Vec<_>>(), stored);
    assert!(connections > 5, "only {connections} connections");
}

/// An event can be read from the file a moment before the listener knows that it is there; who has
/// seen it and asks for the next is not to be taken for somebody from another outbox.
#[test]
fn a_reader_that_asks_page_after_page_finds_neither_gap_nor_repeat() {
    const EVENTS: u64 = 10_000;
    let bridge = Bridge::start(&[]);
    let mut load = load(&bridge, EVENTS);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = Connection::open(bridge.admin);
                let mut after = 0;
                while after < EVENTS {
                    let target = format!("/events?after={after}");
                    let header = ["Accept: application/x-ndjson"];
                    let page = reader.request("GET", &target, &header, b"");
                    let next: u64 = page.header("next-after").unwrap().parse().unwrap();
                    let new = page.body.lines().count() as u64;
                    assert_eq!(next, after + new, "after {after} came {new} events");
                    assert_eq!(page.header("missed-events"), None);
                    after = next;
                }
            });
        }
    });
    assert!(load.wait().unwrap().success());
}

#[test]
fn a_reader_is_told_what_it_missed() {
    let bridge = Bridge::start(&[("outbox.history_events", "5")]);
    call(&bridge, 1..=20);
    let kept = eventually("the history is trimmed", || {
        let kept = lines(&bridge, "");
        (kept.len() == 5).then_some(kept)
    });
    let check = |after: u64, missed: u64, first: usize| {
        let notice = Message {
            id: None,
            event: Some("missed".into()),
            data: format!(r#"{{"events":{missed},"next_after":15}}"#),
        };
        let event =
            |at: usize| Message { id: Some(16 + at as u64), event: None, data: kept[at].clone() };
        let notice = (missed > 0).then_some(notice);
        let expected: Vec<_> = notice.into_iter().chain((first..5).map(event)).collect();
        let mut stream = bridge.stream(&format!("/events?after={after}"), &[]);
        assert_eq!(read(&mut stream, expected.len()), expected, "{after}");

        let page = bridge.page(&format!("?after={after}"));
        let header = (missed > 0).then(|| missed.to_string());
        assert_eq!(page.header("missed-events"), header.as_deref(), "{after}");
        assert_eq!(page.body.lines().collect::<Vec<_>>(), kept[first..], "{after}");
    };
    check(3, 12, 0);
    check(0, 15, 0);
    check(14, 1, 0);
    check(15, 0, 0);
    check(18, 0, 3);
    // A position that is not reached yet is one of another outbox: whatever is here is new.
    check(21, 15, 0);
    check(u64::MAX, 15, 0);
    let start = read(&mut bridge.stream("/events?from=start", &[]), 5);
    assert_eq!((start[0].id, start.len()), (Some(16), 5), "who asks for the oldest misses nothing");
}

#[test]
fn a_position_of_another_outbox_begins_anew() {
    let bridge = Bridge::start(&[]);
    call(&bridge, 1..=2);
    let found = read(&mut bridge.stream("/events", &["Last-Event-ID: 1000"]), 2);
    assert_eq!(found.iter().filter_map(|message| message.id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(lines(&bridge, "?after=1000").len(), 2);
}

#[test]
fn nonsense_is_refused_and_named() {
    let bridge = Bridge::start(&[]);
    let check = |query: &str, header: &str, name: &str| {
        for accept in ["Accept: */*", "Accept: application/x-ndjson"] {
            let target = format!("/events?{query}");
            let reply = http::get(bridge.admin, &target, &[accept, header]);
            assert_eq!(reply.status, 400, "{query} {header}");
            assert_eq!(reply.header("content-type"), Some("application/json"));
            let error = reply.json()["error"].as_str().unwrap().to_owned();
            assert!(error.starts_with(name), "{error}");
        }
    };
    for after in ["", "x", "-1", "1.5", "%2B1", "99999999999999999999"] {
        check(&format!("after={after}"), "X: y", "after is ");
        check("", &format!("Last-Event-ID: {after}x"), "Last-Event-ID is ");
    }
    check("from=yesterday", "X: y", "from is ");
    check("limit=0", "X: y", "limit is ");
    check("limit=-5", "X: y", "limit is ");
    check("wait=10", "X: y", "wait is ");
    check("wait=soon", "X: y", "wait is ");

    let reply = bridge.get("/nowhere");
    assert_eq!(reply.status, 404);
    let error = reply.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("/events"), "{error}");
}

#[test]
fn health_says_in_which_state_each_part_is() {
    let bridge = Bridge::start(&[("outbox.max_bytes", "3 MiB")]);
    assert_eq!(bridge.get("/livez").status, 200);
    call(&bridge, 1..=1);
    assert_eq!(bridge.call("not json").status, 400);
    eventually("the event is delivered", || {
        (bridge.readiness().1["outbox"]["pending"] == 0).then_some(())
    });
    let reply = bridge.get("/readyz");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let mut readiness = reply.json();
    let bytes = readiness["outbox"]["bytes"].take().as_u64().unwrap();
    assert!((1..3 << 20).contains(&bytes), "{bytes}");
    let expected = json!({
        "status": "ready",
        "ingress": { "state": "ready" },
        "outbox": {
            "state": "ready", "pending": 0, "bytes": null, "max_bytes": 3 << 20,
            "dead_letters": 0, "quarantined": 1,
        },
        "sink": { "state": "ready", "name": "embedded" },
    });
    assert_eq!(readiness, expected);
}

const SERIES: [&str; 15] = [
    "ack_seconds_count",
    "ack_seconds_bucket{le=\"2\"}",
    "commit_seconds_count",
    "commit_events_count",
    "outbox_pending",
    "outbox_bytes",
    "outbox_oldest_pending_seconds",
    "published_total{sink=\"embedded\"}",
    "publish_seconds_count",
    "delivery_seconds_count",
    "dead_letters",
    "quarantined",
    "sink_up{sink=\"embedded\"}",
    "last_callback_timestamp_seconds",
    "log_lines_dropped_total",
];

const OUTCOMES: [&str; 10] = [
    "accepted",
    "duplicate",
    "ignored",
    "unauthenticated",
    "stale",
    "unknown_app",
    "malformed",
    "too_large",
    "timeout",
    "overloaded",
];

#[test]
fn every_metric_is_there_from_the_start() {
    let bridge = Bridge::start(&[]);
    let reply = bridge.get("/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let series = SERIES.iter().map(|name| (*name).to_owned());
    let outcomes = OUTCOMES.iter().map(|name| format!("callbacks_total{{outcome=\"{name}\"}}"));
    let expected: Vec<_> = series.chain(outcomes).collect();
    for name in &expected {
        let value = bridge.metric(&format!("topic_bridge_{name}"));
        let is_nothing_yet = !name.starts_with("outbox_bytes") && !name.starts_with("sink_up");
        assert_eq!(value == 0.0, is_nothing_yet, "{name} is {value}");
    }
    assert_eq!(
        bridge.metric(concat!(
            "topic_bridge_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"}"
        )),
        1.0
    );

    call(&bridge, 1..=3);
    eventually("all is delivered", || {
        (bridge.metric("topic_bridge_published_total{sink=\"embedded\"}") == 3.0).then_some(())
    });
    for name in ["ack_seconds_count", "ack_seconds_bucket{le=\"2\"}", "commit_events_sum"] {
        assert_eq!(bridge.metric(&format!("topic_bridge_{name}")), 3.0, "{name}");
    }
    for name in ["commit_seconds_count", "publish_seconds_count", "delivery_seconds_count"] {
        assert!(bridge.metric(&format!("topic_bridge_{name}")) >= 1.0, "{name}");
    }
    let last = bridge.metric("topic_bridge_last_callback_timestamp_seconds");
    assert!((crate::bridge::now() as f64 - last).abs() < 60.0, "{last}");
}

#[test]
fn tail_reads_the_outbox_where_that_is_the_stream() {
    let bridge = Bridge::start(&[]);
    check_tail(&bridge);
    let ended = run(bridge.command("tail").args(["--from-start", "--count", "2"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 2, "{ended:?}");
}
