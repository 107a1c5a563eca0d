//! The metrics: `docs/metrics.md` explains what there is, no more and no less, and programs by others read both formats.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bridge::{Bridge, TOPIC_CREATED, body, is_delivered, signed};
use crate::broker::python;
use crate::http;
use crate::tls::secured;

const PAGE: &str = include_str!("../../docs/metrics.md");
const PARSERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contracts/metrics.py");
/// What Prometheus 3 sends.
const PROMETHEUS: &str = "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
     application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
     text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
const SINKS: [&str; 4] = ["embedded", "kafka", "nats", "rabbitmq"];

/// By their names in the text format, those of histograms without `_bucket`, `_sum` and `_count`.
type Metrics = BTreeMap<String, Metric>;

#[derive(Debug, Default, PartialEq)]
struct Metric {
    kind: String,
    unit: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Metric {
    fn add(&mut self, label: &str, values: &[&str]) {
        let value = |value: &&str| match label {
            "le" => value.parse::<f64>().unwrap().to_string(), // 2 and 2.0 are the same edge
            _ => (*value).to_owned(),
        };
        self.labels.entry(label.to_owned()).or_default().extend(values.iter().map(value));
    }
}

fn openmetrics(bridge: &Bridge) -> String {
    let reply = http::get(bridge.admin, "/metrics", &[PROMETHEUS]);
    let content_type = reply.header("content-type").unwrap();
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    reply.body
}

/// What a bridge shows; of the release only that there is one.
fn add_shown(metrics: &mut Metrics, text: &str) {
    let mut name = String::new();
    for line in text.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", family, kind] => {
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                name = format!("{family}{suffix}");
                kind.clone_into(&mut metrics.entry(name.clone()).or_default().kind);
            }
            ["#", "UNIT", _, unit] => unit.clone_into(&mut metrics.get_mut(&name).unwrap().unit),
            ["#", ..] => {}
            _ => {
                let metric = metrics.get_mut(&name).unwrap();
                let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
                for label in labels.map_or("", |(labels, _)| labels).split_terminator(',') {
                    let (label, value) = label.split_once('=').unwrap();
                    let value = [value.trim_matches('"')];
                    metric.add(label, if label == "version" { &[] } else { &value });
                }
            }
        }
    }
}

/// What is in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What the page explains: the tables of metrics, then a heading for each label, with its values below it.
fn explained() -> Metrics {
    let mut metrics = Metrics::new();
    let (tables, labels) = PAGE.split_once("\n## Values of the labels\n").unwrap();
    for row in tables.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let ["", name, kind, labels, unit, meaning, purpose, ""] = cells[..] else {
            panic!("{row}")
        };
        assert!(!meaning.is_empty() && !purpose.is_empty(), "{row}");
        let mut metric = Metric { kind: kind.to_owned(), ..Metric::default() };
        unit.trim_matches('–').clone_into(&mut metric.unit);
        for label in quoted(labels).into_iter().chain((kind == "histogram").then_some("le")) {
            metric.add(label, &[]);
        }
        let before = metrics.insert(quoted(name)[0].to_owned(), metric);
        assert!(before.is_none(), "{name} is there twice");
    }
    for section in labels.split("\n### ").skip(1) {
        let (heading, text) = section.split_once('\n').unwrap();
        // Of a table the first column.
        let lines = text.lines().map(|line| match line.strip_prefix('|') {
            Some(row) => row.split('|').next().unwrap(),
            None => line,
        });
        let values: Vec<_> = lines.flat_map(quoted).collect();
        let [label, of @ ..] = &quoted(heading)[..] else { panic!("{heading}") };
        for name in of {
            let metric = metrics.get_mut(*name).unwrap_or_else(|| panic!("no row for {name}"));
            assert!(metric.labels.contains_key(*label), "the row of {name} has no {label}");
            metric.add(label, &values);
        }
    }
    metrics
}

#[test]
fn the_page_explains_what_a_bridge_shows_and_nothing_else() {
    let mut shown = Metrics::new();
    for sink in SINKS {
        let nowhere = [
            ("sink", sink),
            ("kafka.brokers", "127.0.0.1:1"),
            ("nats.servers", "nats://127.0.0.1:1"),
            ("rabbitmq.url", "amqp://127.0.0.1:1"),
        ];
        add_shown(&mut shown, &openmetrics(&secured(&nowhere).bridge));
    }
    let explained = explained();
    let only: Vec<_> = shown.keys().filter(|name| !explained.contains_key(*name)).collect();
    assert!(only.is_empty(), "shown, and not in the page: {only:?}");
    let only: Vec<_> = explained.keys().filter(|name| !shown.contains_key(*name)).collect();
    assert!(only.is_empty(), "in the page, and not shown: {only:?}");
    for (name, metric) in &shown {
        assert_eq!(*metric, explained[name], "{name}: shown, and explained");
    }
}

#[test]
fn openmetrics_is_for_those_who_ask_for_it_and_text_for_all_others() {
    let bridge = Bridge::start(&[]);
    let text = openmetrics(&bridge);
    assert!(text.contains("\n# TYPE topic_bridge_callbacks counter\n"), "{text}");
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    for headers in [&[][..], &["Accept: */*"], &["Accept: text/plain;version=0.0.4"]] {
        let reply = http::get(bridge.admin, "/metrics", headers);
        let content_type = reply.header("content-type");
        assert_eq!(content_type, Some("text/plain; version=0.0.4; charset=utf-8"), "{headers:?}");
        assert!(reply.body.contains("\n# TYPE topic_bridge_callbacks_total counter\n"));
        assert!(!reply.body.contains("# EOF"));
    }
}

#[test]
#[ignore = "needs the Python of tests/brokers/install: run tests/run.sh"]
fn parsers_by_others_read_the_same_in_both_formats() {
    let bridge = Bridge::start(&[]);
    for topic in ["one", "two", "three"] {
        assert_eq!(bridge.call(&body(topic)).status, 200);
    }
    let (recorded, not_recorded) = ("4bf92f3577b34da6a3ce929d0e0e4736", "a".repeat(32));
    for (topic, trace, flags) in [("four", recorded, "01"), ("five", &*not_recorded, "00")] {
        let trace = format!("traceparent: 00-{trace}-00f067aa0ba902b7-{flags}");
        let target = signed(TOPIC_CREATED, &[]);
        let body = body(topic);
        let reply = http::request(bridge.ingress, "POST", &target, &[&trace], body.as_bytes());
        assert_eq!(reply.status, 200);
    }
    is_delivered(&bridge);

    let both = json!({"text": bridge.get("/metrics").body, "openmetrics": openmetrics(&bridge)});
    let mut parsers = Command::new(python());
    let parsers = parsers.args(["-B", PARSERS]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut parsers = parsers.spawn().unwrap();
    parsers.stdin.take().unwrap().write_all(both.to_string().as_bytes()).unwrap();
    let said = String::from_utf8(parsers.wait_with_output().unwrap().stdout).unwrap();
    let samples: usize = said.split(" samples").next().unwrap().parse().unwrap();
    assert!(samples > 200, "{said}");
    for name in ["ack_seconds", "delivery_seconds"] {
        let traces = said.lines().filter(|line| line.contains(name)).collect::<Vec<_>>();
        assert!(traces.iter().any(|line| line.ends_with(recorded)), "{name}: {said}");
    }
    assert!(!said.contains(&not_recorded), "{said}");
}
