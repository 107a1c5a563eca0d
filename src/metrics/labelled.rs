//! Metrics that differ in their labels, whose values come from a closed set.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// The labels of one metric, in the order in which they are shown.
pub(super) type Labels = Vec<(&'static str, &'static str)>;

/// A metric for each value of the first label. Unlike those of the library's `Family` all are there from the start,
/// are found without a lock, and are shown in the order in which they were given.
#[derive(Debug, Clone)]
pub(crate) struct Labelled<M>(Vec<(Labels, M)>);

impl<M: Default> Labelled<M> {
    pub(super) fn new(labels: impl IntoIterator<Item = Labels>) -> Self {
        Labelled(labels.into_iter().map(|labels| (labels, M::default())).collect())
    }
}

impl<M> Labelled<M> {
    /// The metric with this value of the first label.
    pub(crate) fn of(&self, value: &str) -> &M {
        let found = self.0.iter().find(|(labels, _)| labels[0].1 == value);
        &found.expect("the set of values is closed").1
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Labelled<M> {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        self.0.iter().try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
