//! `/metrics`, in the format that its reader asks for.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse as _, Response};

use super::Admin;
use crate::metrics::Format;

pub(super) async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let (metrics, outbox) = (&admin.metrics, &admin.outbox);
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    metrics.outbox_pending.set(gauge(outbox.pending()));
    metrics.outbox_bytes.set(gauge(outbox.bytes()));
    metrics.outbox_max_bytes.set(gauge(admin.max_bytes));
    metrics.dead_letters.set(gauge(outbox.dead_letters()));
    metrics.quarantined.set(gauge(outbox.quarantined()));
    metrics.log_lines_dropped(admin.log.dropped());
    match admin.reader.run(|reading| reading.oldest_pending_at()).await {
        Ok(oldest) => {
            let now = admin.outbox.clock().steady();
            let age = oldest.map(|oldest| now.since(oldest)).unwrap_or_default();
            metrics.outbox_oldest_pending_seconds.set(age.as_secs_f64());
        }
        Err(error) => tracing::warn!(%error, "cannot read the age of the oldest pending event"),
    }
    let format = format(&headers);
    let headers = [(CONTENT_TYPE, format.content_type()), (VARY, "accept")];
    (headers, metrics.encode(format)).into_response()
}

/// OpenMetrics for those who name it and do not prefer the text format, such as Prometheus. For everybody else, people
/// with curl among them, the text format.
fn format(headers: &HeaderMap) -> Format {
    let ranges = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let (mut text, mut open) = (0.0_f32, 0.0_f32);
    for range in ranges.flat_map(|accept| accept.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |wanted: &str| {
            let found =
                parameters.iter().find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.trim().trim_matches('"'))
        };
        let weight = parameter("q").map_or(Ok(1.0), str::parse).unwrap_or(0.0);
        match (&*media_type, parameter("version")) {
            ("application/openmetrics-text", None | Some("1.0.0")) => open = open.max(weight),
            ("text/plain", None | Some("0.0.4")) => text = text.max(weight),
            _ => {}
        }
    }
    if open > 0.0 && open >= text { Format::OpenMetrics } else { Format::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        use Format::{OpenMetrics, Prometheus};
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let rows: &[(&[&str], Format)] = &[
            (&[prometheus_3], OpenMetrics),
            (&[prometheus_2], OpenMetrics),
            (&["application/openmetrics-text"], OpenMetrics),
            (
                &["text/plain", "APPLICATION/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=1"],
                OpenMetrics,
            ),
            (&[], Prometheus),
            (&["*/*"], Prometheus),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], Prometheus),
            (&["text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.8"], Prometheus),
            (&["application/openmetrics-text;version=0.0.1"], Prometheus),
            (&["application/openmetrics-text;version=2.0.0"], Prometheus),
            (&["application/openmetrics-text;q=0"], Prometheus),
            (&["application/openmetrics-text;q=much"], Prometheus),
            (&["application/openmetrics-textual, ,;,"], Prometheus),
        ];
        for (accepts, expected) in rows {
            let mut headers = HeaderMap::new();
            for accept in *accepts {
                headers.append(ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(format(&headers), *expected, "{accepts:?}");
        }
    }
}
