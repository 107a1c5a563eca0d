//! Every metric: its name, help text and labels. Labels come from closed sets only, never from a
//! callback's user, group or topic. `docs/metrics.md` explains each to operators.

mod histogram;
mod labelled;
mod process;
mod register;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub(crate) use self::histogram::Histogram;
use self::labelled::{Labelled, Labels};
use self::process::Process;
use self::register::Register;
use crate::callback::KNOWN_COMMANDS;
use crate::time::Timestamp;
use crate::verdict::Kind;

/// How the metrics are written down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Format {
    /// Prometheus' text format 0.0.4, which everybody reads.
    Prometheus,
    /// OpenMetrics 1.0.0, which has exemplars and units.
    OpenMetrics,
}

/// The outcome of a callback.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum CallbackOutcome {
    /// Durable.
    Accepted,
    /// Durable, and confirmed by the sink before the answer.
    Delivered,
    Duplicate,
    Ignored,
    Unauthenticated,
    Stale,
    UnknownApp,
    Malformed,
    TooLarge,
    Timeout,
    Overloaded,
}

const OUTCOMES: [&str; 11] = [
    "accepted",
    "delivered",
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

/// What became of a callback on its way to the backend behind the passthrough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Forwarded {
    Answered,
    Timeout,
    Unreachable,
    /// Not tried, because the backend could not be reached a moment ago.
    Skipped,
    Failed,
    TooLarge,
    Overloaded,
}

const FORWARDED: [&str; 7] =
    ["answered", "timeout", "unreachable", "skipped", "failed", "too_large", "overloaded"];

type FloatGauge = Gauge<f64, AtomicU64>;

/// The metrics of one bridge.
pub(crate) struct Metrics {
    registry: Registry,
    callbacks: Labelled<Counter>,
    ignored: Labelled<Counter>,
    forwarded: Labelled<Counter>,
    pub(crate) passthrough_seconds: Histogram,
    pub(crate) ack_seconds: Histogram,
    pub(crate) confirm_seconds: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) commit_events: Histogram,
    pub(crate) outbox_pending: Gauge,
    pub(crate) outbox_bytes: Gauge,
    pub(crate) outbox_max_bytes: Gauge,
    pub(crate) outbox_oldest_pending_seconds: FloatGauge,
    pub(crate) published: Counter,
    /// By [`Kind`].
    pub(crate) publish_errors: Labelled<Counter>,
    pub(crate) publish_seconds: Histogram,
    pub(crate) delivery_seconds: Histogram,
    pub(crate) dead_letters: Gauge,
    pub(crate) quarantined: Gauge,
    pub(crate) sink_up: Gauge,
    pub(crate) last_callback_timestamp_seconds: FloatGauge,
    log_lines_dropped: Counter,
    /// Without labels, and without its one value where there is no certificate.
    certificate_expiry: Family<[(&'static str, &'static str); 0], FloatGauge>,
}

/// Seconds: fine-grained where an answer should be, with an edge at the platform's two seconds.
const ACK_EDGES: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 5.0];
const COMMIT_EDGES: [f64; 12] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];
const BATCH_EDGES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Seconds, up to a day: outages show up here.
const DELIVERY_EDGES: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 21600.0, 86400.0];

const CALLBACKS_HELP: &str = "Callbacks by how they ended.";
const IGNORED_HELP: &str = "Authentic callbacks of other commands, answered OK and not published.";
const ACK_HELP: &str = "From a callback's arrival to its answer; the platform gives up after 2 s.";
const CONFIRM_HELP: &str =
    "From a callback's arrival to the sink's confirmation, where the answer waits for it.";
const PASSED_HELP: &str =
    "Callbacks of other commands on their way to the backend, by how that ended.";
const PASSTHROUGH_HELP: &str =
    "From forwarding a callback to the backend's answer, or to giving up on it.";
const COMMIT_HELP: &str = "To make one batch of events durable.";
const BYTES_HELP: &str = "Bytes of the outbox in use, as outbox.max_bytes counts them.";
const OLDEST_HELP: &str =
    "Age of the oldest event not delivered yet, 0 where there is none: alert on this.";
const ERRORS_HELP: &str = "Events that the sink did not confirm at one attempt, by kind.";
const PUBLISH_HELP: &str = "To have one batch of events confirmed by the sink.";
const DELIVERY_HELP: &str = "From an event's acceptance to its confirmation by the sink.";
const QUARANTINED_HELP: &str = "Authentic callbacks that could not be understood and are kept.";
const LAST_HELP: &str = "When the last authentic callback came, in Unix time; 0 before the first.";
const EXPIRY_HELP: &str = "When the TLS certificate in use expires, in Unix time.";
const DROPPED_HELP: &str = "Log lines dropped because stderr was not read as fast as they came.";

impl CallbackOutcome {
    /// The label.
    pub(crate) fn name(self) -> &'static str {
        OUTCOMES[self as usize]
    }
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Metrics {
    /// `sink` is the name of the sink in use.
    pub(crate) fn new(sink: &'static str) -> Self {
        let mut registry = Registry::default();
        let mut new = Register(registry.sub_registry_with_prefix("topic_bridge"));
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        new.add("build_info", "Always 1; the label names the release.", version);
        let mut metrics = Metrics {
            callbacks: new.labelled("callbacks_total", CALLBACKS_HELP, by("outcome", OUTCOMES)),
            ignored: new.labelled(
                "callbacks_ignored_total",
                IGNORED_HELP,
                by("command", KNOWN_COMMANDS),
            ),
            ack_seconds: new.histogram("ack_seconds", ACK_HELP, &ACK_EDGES),
            confirm_seconds: new.histogram("confirm_seconds", CONFIRM_HELP, &ACK_EDGES),
            last_callback_timestamp_seconds: new
                .metric("last_callback_timestamp_seconds", LAST_HELP),
            forwarded: new.labelled("passthrough_total", PASSED_HELP, by("outcome", FORWARDED)),
            passthrough_seconds: new.histogram("passthrough_seconds", PASSTHROUGH_HELP, &ACK_EDGES),
            commit_seconds: new.histogram("commit_seconds", COMMIT_HELP, &COMMIT_EDGES),
            commit_events: new.histogram("commit_events", "Events in one commit.", &BATCH_EDGES),
            outbox_pending: new.metric("outbox_pending", "Events not delivered yet."),
            outbox_oldest_pending_seconds: new.metric("outbox_oldest_pending_seconds", OLDEST_HELP),
            outbox_bytes: new.metric("outbox_bytes", BYTES_HELP),
            outbox_max_bytes: new.metric("outbox_max_bytes", "The limit of outbox_bytes."),
            dead_letters: new.metric("dead_letters", "Events that the sink refused for good."),
            quarantined: new.metric("quarantined", QUARANTINED_HELP),
            published: new.of_sink("published_total", "Events that the sink has confirmed.", sink),
            publish_errors: new.labelled("publish_errors_total", ERRORS_HELP, errors_of(sink)),
            publish_seconds: new.histogram("publish_seconds", PUBLISH_HELP, &COMMIT_EDGES),
            delivery_seconds: new.histogram("delivery_seconds", DELIVERY_HELP, &DELIVERY_EDGES),
            sink_up: new.of_sink("sink_up", "1 while the sink takes events, else 0.", sink),
            log_lines_dropped: new.metric("log_lines_dropped_total", DROPPED_HELP),
            certificate_expiry: new.metric("tls_certificate_expiry_timestamp_seconds", EXPIRY_HELP),
            registry,
        };
        let process = metrics.registry.sub_registry_with_prefix("process");
        process.register_collector(Box::new(Process::this()));
        metrics
    }

    pub(crate) fn count(&self, outcome: CallbackOutcome) {
        self.count_many(outcome, 1);
    }

    pub(crate) fn count_many(&self, outcome: CallbackOutcome, number: u64) {
        self.callbacks.of(outcome.name()).inc_by(number);
    }

    pub(crate) fn count_forwarded(&self, outcome: Forwarded) {
        self.forwarded.of(FORWARDED[outcome as usize]).inc();
    }

    pub(crate) fn count_ignored(&self, command: &'static str) {
        self.ignored.of(command).inc();
    }

    /// How many lines the log has dropped so far; it counts them itself.
    pub(crate) fn log_lines_dropped(&self, total: u64) {
        self.log_lines_dropped.inc_by(total.saturating_sub(self.log_lines_dropped.get()));
    }

    pub(crate) fn set_certificate_expiry(&self, expiry: Timestamp) {
        let seconds = (expiry.as_millis() / 1000) as f64;
        self.certificate_expiry.get_or_create(&[]).set(seconds);
    }

    pub(crate) fn encode(&self, format: Format) -> String {
        let mut shown = String::new();
        let written = match format {
            Format::Prometheus => prometheus_text::encode(&mut shown, &self.registry),
            Format::OpenMetrics => text::encode(&mut shown, &self.registry),
        };
        written.expect("writing into memory does not fail");
        match format {
            // Whole numbers without the library's decimal, as programs in use may compare them.
            Format::Prometheus => shown.replace(".0\n", "\n"),
            Format::OpenMetrics => shown,
        }
    }
}

fn by(
    label: &'static str,
    values: impl IntoIterator<Item = &'static str>,
) -> impl Iterator<Item = Labels> {
    values.into_iter().map(move |value| vec![(label, value)])
}

fn errors_of(sink: &'static str) -> impl Iterator<Item = Labels> {
    Kind::ALL.into_iter().map(move |kind| vec![("kind", kind.name()), ("sink", sink)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceContext;

    #[test]
    fn a_traced_observation_is_an_exemplar_in_openmetrics_alone() {
        let metrics = Metrics::new("embedded");
        let before = Timestamp::now();
        let recorded = "00-00af7651916cd43dd8448eb211c80319-00f067aa0ba902b7-01";
        let not_recorded = recorded.replace("-01", "-00");
        let traces = [recorded, &not_recorded].map(TraceContext::parse);
        metrics.ack_seconds.observe_traced(0.003, None);
        metrics.ack_seconds.observe_traced(0.004, traces[0]);
        metrics.ack_seconds.observe_traced(0.0045, traces[1]);

        let shown = metrics.encode(Format::OpenMetrics);
        let traced: Vec<_> = shown.lines().filter_map(|line| line.split_once(" # ")).collect();
        let [(bucket, exemplar)] = traced[..] else { panic!("{shown}") };
        assert_eq!(bucket, "topic_bridge_ack_seconds_bucket{le=\"0.005\"} 3");
        let (exemplar, at) = exemplar.rsplit_once(' ').unwrap();
        assert_eq!(exemplar, "{trace_id=\"00af7651916cd43dd8448eb211c80319\"} 0.004");
        let at = at.parse::<f64>().unwrap() - before.as_millis() as f64 / 1000.0;
        assert!((-0.001..60.0).contains(&at), "{at} s after it was observed");
        assert!(shown.ends_with("\n# EOF\n"));

        let shown = metrics.encode(Format::Prometheus);
        assert!(shown.contains("\ntopic_bridge_ack_seconds_bucket{le=\"0.005\"} 3\n"));
        assert!(!shown.contains(" # ") && !shown.contains("# EOF"), "{shown}");
    }

    #[test]
    fn names_and_numbers_are_written_as_each_format_has_them() {
        let metrics = Metrics::new("kafka");
        metrics.count_many(CallbackOutcome::Accepted, 3);
        metrics.delivery_seconds.observe(2.0);
        metrics.last_callback_timestamp_seconds.set(1_790_000_000.25);
        let check = |format, expected: &[&str]| {
            let shown = metrics.encode(format);
            for line in expected {
                assert!(shown.lines().any(|shown| shown == *line), "no {line} in\n{shown}");
            }
        };
        check(
            Format::Prometheus,
            &[
                "# HELP topic_bridge_callbacks_total Callbacks by how they ended.",
                "# TYPE topic_bridge_callbacks_total counter",
                "topic_bridge_callbacks_total{outcome=\"accepted\"} 3",
                "# TYPE topic_bridge_build_info gauge",
                "topic_bridge_delivery_seconds_bucket{le=\"86400\"} 1",
                "topic_bridge_delivery_seconds_sum 2",
                "topic_bridge_outbox_oldest_pending_seconds 0",
                "topic_bridge_publish_errors_total{kind=\"other\",sink=\"kafka\"} 0",
                "topic_bridge_last_callback_timestamp_seconds 1790000000.25",
            ],
        );
        check(
            Format::OpenMetrics,
            &[
                "# TYPE topic_bridge_callbacks counter",
                "topic_bridge_callbacks_total{outcome=\"accepted\"} 3",
                "# TYPE topic_bridge_build info",
                "# UNIT topic_bridge_delivery_seconds seconds",
                "topic_bridge_delivery_seconds_bucket{le=\"86400.0\"} 1",
                "topic_bridge_delivery_seconds_sum 2.0",
                "# UNIT process_resident_memory_bytes bytes",
            ],
        );
    }
}
