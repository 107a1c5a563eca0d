//! Spans, in a real collector: one trace leads from the platform's request to the consumer. In builds with the
//! feature `otlp` only: tests/run.sh makes one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::bridge::{Bridge, SAMPLE, TOPIC_CREATED, body, eventually, run, signed};
use crate::broker::{self, Kind, Verb};
use crate::calls::{against_each_broker, becomes, is_delivered};
use crate::http;
use crate::servers::ports;

const COLLECTOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/collector/collector");
const CONSUMER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/collector/consumer.py");

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A running collector, with what it took. Killed when dropped.
struct Collector {
    child: Child,
    port: u16,
    home: TempDir,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    /// Nothing where it could not be built.
    fn start() -> Option<Self> {
        Self::start_at(ports::free())
    }

    fn start_at(port: u16) -> Option<Self> {
        if !Path::new(COLLECTOR).exists() {
            eprintln!("SKIPPED: there is no collector: see tests/collector/install");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let config = format!(
            "yaml:{{receivers: {{otlp: {{protocols: {{http: {{endpoint: '127.0.0.1:{port}'}}}}}}}}, \
             exporters: {{file: {{path: '{}', flush_interval: 20ms}}}}, \
             service: {{telemetry: {{metrics: {{level: none}}}}, \
             pipelines: {{traces: {{receivers: [otlp], exporters: [file]}}}}}}}}",
            home.path().join("spans.json").display()
        );
        let log = File::create(home.path().join("log")).unwrap();
        let mut command = Command::new(COLLECTOR);
        command.args(["--config", &config]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut collector = Collector { child: command.spawn().unwrap(), port, home };
        eventually("the collector is ready", || {
            let log = collector.text("log");
            assert!(collector.child.try_wait().unwrap().is_none(), "it ended: {log}");
            log.contains("Everything is ready").then_some(())
        });
        Some(collector)
    }

    fn text(&self, name: &str) -> String {
        let path: PathBuf = self.home.path().join(name);
        fs::read_to_string(path).unwrap_or_default()
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All spans so far, each with the name of its service.
    fn spans(&self) -> Vec<Span> {
        let text = self.text("spans.json");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let resources = lines.flat_map(|mut line| array(line["resourceSpans"].take()));
        let spans = resources.flat_map(|mut resource| {
            let service = attribute(&resource["resource"], "service.name").unwrap();
            let scopes = array(resource["scopeSpans"].take()).into_iter();
            let spans = scopes.flat_map(|mut scope| array(scope["spans"].take()));
            spans.map(move |raw| Span { service: service.clone(), raw }).collect::<Vec<_>>()
        });
        spans.collect()
    }

    /// The one span with this name, once it is there.
    fn span(&self, name: &str) -> Span {
        let found = || self.spans().into_iter().find(|span| span.raw["name"] == name);
        eventually(&format!("there is the span {name:?}"), found)
    }
}

#[derive(Debug)]
struct Span {
    service: String,
    raw: Value,
}

impl Span {
    fn id(&self) -> &str {
        self.raw["spanId"].as_str().unwrap()
    }

    fn trace(&self) -> &str {
        self.raw["traceId"].as_str().unwrap()
    }

    fn parent(&self) -> &str {
        self.raw["parentSpanId"].as_str().unwrap_or_default()
    }

    fn kind(&self) -> u64 {
        self.raw["kind"].as_u64().unwrap()
    }

    fn has(&self, name: &str, wanted: &str) {
        assert_eq!(attribute(&self.raw, name).as_deref(), Some(wanted), "{name} in {self:#?}");
    }

    /// From its beginning to its end, in nanoseconds since the Unix epoch.
    fn times(&self) -> [u64; 2] {
        ["startTimeUnixNano", "endTimeUnixNano"]
            .map(|name| self.raw[name].as_str().unwrap().parse().unwrap())
    }
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn attribute(of: &Value, name: &str) -> Option<String> {
    let found = of["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == name)?;
    let (_, value) = found["value"].as_object()?.iter().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// A bridge that sends its spans soon.
fn start(address: &str, more: &[(&str, &str)]) -> Bridge {
    let settings = [("otlp.endpoint", address), ("log.level", "debug")];
    Bridge::start_with(&[&settings, more].concat(), |command| {
        command.env("OTEL_BSP_SCHEDULE_DELAY", "50");
        command.env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    })
}

fn call(bridge: &Bridge, body: &str, flags: &str) -> u16 {
    let traceparent = format!("traceparent: 00-{TRACE}-{CALLER}-{flags}");
    let target = signed(TOPIC_CREATED, &[]);
    http::request(bridge.ingress, "POST", &target, &[&traceparent], body.as_bytes()).status
}

against_each_broker! {
    one_trace_leads_from_the_platform_to_the_consumer
    an_attempt_that_fails_is_a_span_with_its_reason
}

mod checks {
    use super::*;

    pub(super) fn one_trace_leads_from_the_platform_to_the_consumer(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let Some(collector) = Collector::start() else { return };
        let settings = broker.target.settings();
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, &**value)).collect();
        let bridge = start(&collector.address(), &settings);
        becomes(&bridge, "ready");
        assert_eq!(call(&bridge, SAMPLE, "01"), 200);
        let [message] = &broker.target.read(1)[..] else { panic!("there is one message") };
        let traceparent = message.header("traceparent").unwrap();
        let mut consumer = Command::new(broker::python());
        let ended = run(consumer.args(["-B", CONSUMER, &collector.address(), traceparent]));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let request = collector.span("POST /");
        let commit = collector.span("outbox commit");
        let wait = collector.span("outbox wait");
        let publish = collector.span(&publish_name(kind, &settings));
        let process = collector.span("process");
        assert_eq!(collector.spans().len(), 5);
        for (span, parent, kind) in [
            (&request, CALLER, 2),
            (&commit, request.id(), 1),
            (&wait, request.id(), 1),
            (&publish, request.id(), 4),
            (&process, publish.id(), 5),
        ] {
            assert_eq!(
                (span.trace(), span.parent(), span.kind()),
                (TRACE, parent, kind),
                "{span:#?}"
            );
            let [began, ended] = span.times();
            assert!(began <= ended, "{span:#?}");
        }
        assert_eq!(traceparent, format!("00-{TRACE}-{}-01", publish.id()));
        assert_eq!((&*request.service, &*process.service), ("topic-bridge", "consumer"));
        let id = message.body["id"].as_str().unwrap();
        check_attributes(kind, &request, &publish, id);
        // The log leads to the trace.
        for words in ["took a callback", "delivered"] {
            let logged = eventually("the log has it", || bridge.logged(words).pop());
            assert_eq!(logged["fields"]["trace_id"], TRACE);
            assert_eq!(logged["fields"]["id"], id);
        }
    }

    pub(super) fn an_attempt_that_fails_is_a_span_with_its_reason(kind: Kind) {
        let Some(broker) = broker::alone(kind) else { return };
        let Some(collector) = Collector::start() else { return };
        let bridge = {
            let settings = broker.target.settings();
            let settings = settings.iter().map(|(key, value)| (*key, &**value));
            let soon = [("relay.confirm_timeout", "3s")];
            start(&collector.address(), &settings.chain(soon).collect::<Vec<_>>())
        };
        becomes(&bridge, "ready");
        broker.tell(Verb::Stop);
        assert_eq!(call(&bridge, &body("topic"), "01"), 200);
        let failed = eventually("an attempt fails", || {
            collector.spans().into_iter().find(|span| span.kind() == 4)
        });
        assert_eq!(failed.raw["status"]["code"], 2, "{failed:#?}");
        assert!(failed.raw["status"]["message"].as_str().is_some_and(|reason| !reason.is_empty()));
        assert!(attribute(&failed.raw, "error.type").is_some(), "{failed:#?}");
        broker.tell(Verb::Start);
        is_delivered(&bridge);
        let good = eventually("an attempt succeeds", || {
            let mut sent = collector.spans().into_iter().filter(|span| span.kind() == 4);
            sent.find(|span| span.raw["status"]["code"].is_null())
        });
        assert_eq!((good.trace(), good.parent()), (failed.trace(), failed.parent()));
        assert_ne!(good.id(), failed.id());
    }
}

fn setting<'s>(settings: &[(&str, &'s str)], key: &str) -> &'s str {
    settings.iter().find(|(name, _)| *name == key).unwrap().1
}

fn publish_name(kind: Kind, settings: &[(&str, &str)]) -> String {
    match kind {
        Kind::Kafka => format!("send {}", setting(settings, "kafka.topic")),
        Kind::Rabbitmq => {
            let exchange = setting(settings, "rabbitmq.exchange");
            format!("publish {exchange}:topic.created.{{sdk_app_id}}")
        }
        Kind::Nats => format!("publish {}", setting(settings, "nats.subject")),
    }
}

/// By the names of OpenTelemetry's semantic conventions.
fn check_attributes(kind: Kind, request: &Span, publish: &Span, id: &str) {
    for (name, wanted) in [
        ("http.request.method", "POST"),
        ("http.route", "/"),
        ("url.path", "/"),
        ("url.scheme", "http"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("network.peer.address", "127.0.0.1"),
        ("topic_bridge.outcome", "accepted"),
        ("topic_bridge.command", TOPIC_CREATED),
    ] {
        request.has(name, wanted);
    }
    assert!(!request.raw.to_string().contains("Sign="), "the signature is nobody's business");
    let (system, operation) = match kind {
        Kind::Kafka => ("kafka", "send"),
        Kind::Rabbitmq => ("rabbitmq", "publish"),
        Kind::Nats => ("nats", "publish"),
    };
    for (name, wanted) in [
        ("messaging.system", system),
        ("messaging.operation.name", operation),
        ("messaging.operation.type", "send"),
        ("messaging.message.id", id),
        ("cloudevents.event_id", id),
        ("cloudevents.event_type", "chat.topic.created.v1"),
        ("cloudevents.event_source", "/apps/1400000000"),
        ("server.address", "127.0.0.1"),
    ] {
        publish.has(name, wanted);
    }
    let destination = attribute(&publish.raw, "messaging.destination.name").unwrap();
    assert!(!destination.contains('{'), "{destination}");
}

#[test]
fn who_began_a_trace_decides_whether_it_is_recorded_and_else_the_ratio_does() {
    let Some(collector) = Collector::start() else { return };
    let bridge = start(&collector.address(), &[("otlp.sample_ratio", "0")]);
    assert_eq!(bridge.call(&body("begins here")).status, 200);
    assert_eq!(call(&bridge, &body("not recorded"), "00"), 200);
    assert_eq!(call(&bridge, &body("recorded"), "01"), 200);
    collector.span("POST /");
    collector.span("outbox commit");
    let mut bridge = bridge;
    bridge.stop(); // sends what is left
    assert_eq!(collector.spans().len(), 2);
    let bridge = bridge.restart_with(&[("otlp.sample_ratio", "1")], |_| {});
    assert_eq!(bridge.call(&body("begins here, too")).status, 200);
    let begun = eventually("it is recorded", || {
        collector.spans().into_iter().find(|span| span.kind() == 2 && span.trace() != TRACE)
    });
    assert_eq!(begun.parent(), "");
}

/// Nor what is recorded: only who has the token does.
#[test]
fn a_stranger_makes_no_spans() {
    let Some(collector) = Collector::start() else { return };
    let mut bridge = start(&collector.address(), &[]);
    let traceparent = format!("traceparent: 00-{TRACE}-{CALLER}-01");
    let unsigned = "/?SdkAppid=1400000000&CallbackCommand=Group.CallbackAfterCreateTopic";
    for target in [unsigned, "/elsewhere"] {
        let reply =
            http::request(bridge.ingress, "POST", target, &[&traceparent], SAMPLE.as_bytes());
        assert!([401, 404].contains(&reply.status), "{reply:?}");
    }
    assert_eq!(call(&bridge, "{}", "01"), 400);
    bridge.stop();
    let refused = collector.span("POST /");
    refused.has("topic_bridge.outcome", "malformed");
    refused.has("http.response.status_code", "400");
    assert_eq!(collector.spans().iter().filter(|span| span.kind() == 2).count(), 1);
}

#[test]
fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let port = ports::free();
    let mut bridge = start(&format!("http://127.0.0.1:{port}"), &[]);
    for number in 0..10 {
        assert_eq!(bridge.call(&body(&format!("topic-{number}"))).status, 200);
    }
    let lost = "the collector does not take spans";
    eventually("it is said", || (!bridge.logged(lost).is_empty()).then_some(()));
    assert_eq!(bridge.call(&body("one more")).status, 200);
    if let Some(collector) = Collector::start_at(port) {
        eventually("it takes them again", || {
            assert_eq!(bridge.call(SAMPLE).status, 200);
            (!bridge.logged("the collector takes spans again").is_empty()).then_some(())
        });
        assert!(!collector.spans().is_empty());
    }
    assert_eq!(bridge.logged(lost).len(), 1, "{}", bridge.log());
    bridge.stop();
}
