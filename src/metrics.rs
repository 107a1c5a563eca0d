//! Every metric: its name, help text and labels. Labels come from closed sets only, never from a
//! callback's user, group or topic.

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::callback::KNOWN_COMMANDS;
use crate::time::Timestamp;
use crate::verdict::Kind;

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

/// The metrics of one bridge.
pub(crate) struct Metrics {
    registry: Registry,
    /// Metrics that every process has: CPU, memory, descriptors, with names without our prefix.
    process: Registry,
    callbacks: [IntCounter; OUTCOMES.len()],
    ignored: IntCounterVec,
    forwarded: [IntCounter; FORWARDED.len()],
    pub(crate) passthrough_seconds: Histogram,
    pub(crate) ack_seconds: Histogram,
    pub(crate) confirm_seconds: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) commit_events: Histogram,
    pub(crate) outbox_pending: IntGauge,
    pub(crate) outbox_bytes: IntGauge,
    pub(crate) outbox_max_bytes: IntGauge,
    pub(crate) outbox_oldest_pending_seconds: Gauge,
    pub(crate) published: IntCounter,
    pub(crate) publish_errors: IntCounterVec,
    pub(crate) publish_seconds: Histogram,
    pub(crate) delivery_seconds: Histogram,
    pub(crate) dead_letters: IntGauge,
    pub(crate) quarantined: IntGauge,
    pub(crate) sink_up: IntGauge,
    pub(crate) last_callback_timestamp_seconds: Gauge,
    log_lines_dropped: IntCounter,
    /// Without labels, and without its one value where there is no certificate.
    certificate_expiry: GaugeVec,
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

const ACK_HELP: &str = "From a callback's arrival to its answer; the platform gives up after 2 s.";
const CONFIRM_HELP: &str =
    "From a callback's arrival to the sink's confirmation, where the answer waits for it.";
const PASSTHROUGH_HELP: &str =
    "From forwarding a callback to the backend's answer, or to giving up on it.";
const COMMIT_HELP: &str = "To make one batch of events durable.";
const BYTES_HELP: &str = "Bytes of the outbox in use, as outbox.max_bytes counts them.";
const OLDEST_HELP: &str =
    "Age of the oldest event not delivered yet, 0 where there is none: alert on this.";
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

impl Metrics {
    /// `sink` is the name of the sink in use.
    pub(crate) fn new(sink: &'static str) -> Self {
        let registry = Registry::new_custom(Some("topic_bridge".into()), None)
            .expect("the prefix is a valid metric name");
        let new = Register { registry: &registry };
        let callbacks = new.counters("callbacks_total", "Callbacks by how they ended.", "outcome");
        let help = "Authentic callbacks of other commands, answered OK and not published.";
        let ignored = new.counters("callbacks_ignored_total", help, "command");
        let help = "Callbacks of other commands on their way to the backend, by how that ended.";
        let forwarded = new.counters("passthrough_total", help, "outcome");
        let help = "Events that the sink has confirmed.";
        let published = new.counters("published_total", help, "sink");
        let up = Opts::new("sink_up", "1 while the sink takes events, else 0.");
        let metrics = Metrics {
            callbacks: OUTCOMES.map(|outcome| callbacks.with_label_values(&[outcome])),
            ignored,
            forwarded: FORWARDED.map(|outcome| forwarded.with_label_values(&[outcome])),
            passthrough_seconds: new.histogram("passthrough_seconds", PASSTHROUGH_HELP, &ACK_EDGES),
            confirm_seconds: new.histogram("confirm_seconds", CONFIRM_HELP, &ACK_EDGES),
            ack_seconds: new.histogram("ack_seconds", ACK_HELP, &ACK_EDGES),
            commit_seconds: new.histogram("commit_seconds", COMMIT_HELP, &COMMIT_EDGES),
            commit_events: new.histogram("commit_events", "Events in one commit.", &BATCH_EDGES),
            outbox_pending: new.gauge("outbox_pending", "Events not delivered yet."),
            outbox_bytes: new.gauge("outbox_bytes", BYTES_HELP),
            outbox_max_bytes: new.gauge("outbox_max_bytes", "The limit of outbox_bytes."),
            outbox_oldest_pending_seconds: new
                .float_gauge("outbox_oldest_pending_seconds", OLDEST_HELP),
            published: published.with_label_values(&[sink]),
            publish_errors: new.errors(sink),
            publish_seconds: new.histogram("publish_seconds", PUBLISH_HELP, &COMMIT_EDGES),
            delivery_seconds: new.histogram("delivery_seconds", DELIVERY_HELP, &DELIVERY_EDGES),
            dead_letters: new.gauge("dead_letters", "Events that the sink refused for good."),
            quarantined: new.gauge("quarantined", QUARANTINED_HELP),
            sink_up: new.gauge_with(up.const_label("sink", sink)),
            last_callback_timestamp_seconds: new
                .float_gauge("last_callback_timestamp_seconds", LAST_HELP),
            log_lines_dropped: new.counter("log_lines_dropped_total", DROPPED_HELP),
            certificate_expiry: new.add(GaugeVec::new(
                Opts::new("tls_certificate_expiry_timestamp_seconds", EXPIRY_HELP),
                &[],
            )),
            process: Registry::new(),
            registry,
        };
        metrics.begin();
        metrics
    }

    /// Creates the series that exist before the first event: one for each label, the release, the process.
    fn begin(&self) {
        for kind in Kind::ALL {
            self.publish_errors.with_label_values(&[kind.name()]);
        }
        for command in KNOWN_COMMANDS {
            self.ignored.with_label_values(&[command]);
        }
        let info = Opts::new("build_info", "Always 1; the label names the release.");
        let info = info.const_label("version", env!("CARGO_PKG_VERSION"));
        Register { registry: &self.registry }.gauge_with(info).set(1);
        #[cfg(target_os = "linux")]
        self.process
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("registered once");
    }

    pub(crate) fn count(&self, outcome: CallbackOutcome) {
        self.callbacks[outcome as usize].inc();
    }

    pub(crate) fn count_many(&self, outcome: CallbackOutcome, number: u64) {
        self.callbacks[outcome as usize].inc_by(number);
    }

    pub(crate) fn count_forwarded(&self, outcome: Forwarded) {
        self.forwarded[outcome as usize].inc();
    }

    pub(crate) fn count_ignored(&self, label: &'static str) {
        self.ignored.with_label_values(&[label]).inc();
    }

    /// How many lines the log has dropped so far; it counts them itself.
    pub(crate) fn log_lines_dropped(&self, total: u64) {
        self.log_lines_dropped.inc_by(total.saturating_sub(self.log_lines_dropped.get()));
    }

    pub(crate) fn set_certificate_expiry(&self, expiry: Timestamp) {
        let seconds = (expiry.as_millis() / 1000) as f64;
        self.certificate_expiry.with_label_values::<&str>(&[]).set(seconds);
    }

    /// All metrics in Prometheus text format.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for registry in [&self.registry, &self.process] {
            TextEncoder::new()
                .encode(&registry.gather(), &mut text)
                .expect("writing into memory does not fail");
        }
        text
    }
}

/// Creates and registers metrics. Names are constants, each registered once, so neither step can fail.
struct Register<'r> {
    registry: &'r Registry,
}

impl Register<'_> {
    fn add<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<M>,
    ) -> M {
        let metric = metric.expect("names and labels are valid constants");
        self.registry.register(Box::new(metric.clone())).expect("each name is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    fn errors(&self, sink: &str) -> IntCounterVec {
        let help = "Events that the sink did not confirm at one attempt, by kind.";
        let opts = Opts::new("publish_errors_total", help).const_label("sink", sink);
        self.add(IntCounterVec::new(opts, &["kind"]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.gauge_with(Opts::new(name, help))
    }

    fn gauge_with(&self, opts: Opts) -> IntGauge {
        self.add(IntGauge::with_opts(opts))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, edges: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(edges.to_vec())))
    }
}
