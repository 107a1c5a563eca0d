//! Creates metrics under the names and with the help texts that are shown.

use prometheus_client::metrics::TypedMetric;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::Histogram;
use super::labelled::{Labelled, Labels};

pub(super) struct Register<'r>(pub(super) &'r mut Registry);

impl Register<'_> {
    /// Of the name, all but our prefix. The library appends the unit and the type's suffix to a name, and a full stop
    /// to a help text; here they are written as they are shown, so that a search finds them.
    pub(super) fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        let help = help.strip_suffix('.').expect("a help text is a sentence");
        let name = name.strip_suffix("_total").or(name.strip_suffix("_info")).unwrap_or(name);
        let is_of = |end: &str| name.strip_suffix(end);
        if let Some(name) = is_of("_seconds") {
            self.0.register_with_unit(name, help, Unit::Seconds, metric);
        } else if let Some(name) = is_of("_bytes") {
            self.0.register_with_unit(name, help, Unit::Bytes, metric);
        } else {
            self.0.register(name, help, metric);
        }
    }

    /// Adds a metric that is also kept: the two share their value.
    pub(super) fn keep<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.add(name, help, metric.clone());
        metric
    }

    pub(super) fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.keep(name, help, M::default())
    }

    /// One metric for each of these labels.
    pub(super) fn labelled<M: Metric + TypedMetric + Clone + Default>(
        &mut self,
        name: &str,
        help: &str,
        labels: impl IntoIterator<Item = Labels>,
    ) -> Labelled<M> {
        self.keep(name, help, Labelled::new(labels))
    }

    /// One metric, labelled with the sink in use.
    pub(super) fn of_sink<M: Metric + TypedMetric + Clone + Default>(
        &mut self,
        name: &str,
        help: &str,
        sink: &'static str,
    ) -> M {
        self.labelled::<M>(name, help, [vec![("sink", sink)]]).of(sink).clone()
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, edges: &[f64]) -> Histogram {
        self.keep(name, help, Histogram::new(edges))
    }
}
