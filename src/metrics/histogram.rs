//! Histograms, whose observations may name the trace that they belong to.

use std::fmt::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use prometheus_client::encoding::{
    EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder,
};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::{MetricType, TypedMetric as _};

use crate::time::Timestamp;
use crate::trace::{TraceContext, TraceId};

/// Each bucket keeps its last observation that had a trace, as an exemplar.
#[derive(Debug, Clone)]
pub(crate) struct Histogram(HistogramWithExemplars<[(&'static str, TraceId); 1]>);

impl Histogram {
    pub(super) fn new(edges: &[f64]) -> Self {
        Histogram(HistogramWithExemplars::new(edges.iter().copied()))
    }

    pub(crate) fn observe(&self, value: f64) {
        self.0.observe(value, None, None);
    }

    /// The same, with the trace as an exemplar if it is one that is recorded. Cheap enough for each callback: some 50 ns, half of which are for
    /// the time.
    pub(crate) fn observe_traced(&self, value: f64, trace: Option<TraceContext>) {
        let Some(trace) = trace.filter(TraceContext::is_sampled) else {
            return self.observe(value);
        };
        let now = UNIX_EPOCH + Duration::from_millis(Timestamp::now().as_millis());
        self.0.observe(value, Some([("trace_id", trace.trace)]), Some(now));
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        HistogramWithExemplars::<TraceId>::TYPE
    }
}

impl EncodeLabelValue for TraceId {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        write!(encoder, "{self}")
    }
}
