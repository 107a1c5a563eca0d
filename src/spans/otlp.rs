//! Sends spans to a collector: OTLP over HTTP, protobuf. OpenTelemetry's own batches are sent by a thread of its
//! library; each is a request of the runtime's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    Protocol, SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;

use super::{Config, Exporter, Spans};
use crate::tls;

/// How long one request to the collector may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of the program may wait for the collector.
const LAST_SPANS: Duration = Duration::from_secs(2);

pub(super) fn start(config: &Config) -> anyhow::Result<(Spans, Exporter)> {
    let Some(endpoint) = &config.endpoint else {
        return Ok((Spans::off(), Exporter { provider: None }));
    };
    let url = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
    let otlp = Otlp::builder()
        .with_http()
        .with_http_client(Collector::new()?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&url)
        .with_timeout(PATIENCE)
        .build()
        .context("otlp.endpoint")?;
    let resource = Resource::builder() // with what OTEL_RESOURCE_ATTRIBUTES says
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(Reporting { otlp, url, lost: AtomicU64::new(0) })
        .with_resource(resource)
        .with_sampler(sampler)
        .build();
    let tracer = Some(provider.tracer("topic-bridge"));
    Ok((Spans { tracer }, Exporter { provider: Some(provider) }))
}

pub(super) fn close(exporter: Exporter) {
    if let Some(provider) = exporter.provider {
        let _ = provider.shutdown_with_timeout(LAST_SPANS); // what is lost was reported
    }
}

/// Says once that the collector takes nothing, and once that it does again.
struct Reporting {
    otlp: Otlp,
    url: String,
    /// Since the collector was last seen to work.
    lost: AtomicU64,
}

impl fmt::Debug for Reporting {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "spans to {}", self.url)
    }
}

impl SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        match self.otlp.export(batch).await {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::info!(url = self.url, lost, "the collector takes spans again");
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        url = self.url,
                        %error,
                        "the collector does not take spans, so they are lost: look at otlp.endpoint, and at the \
                         collector; callbacks and events are not affected"
                    );
                }
            }
        }
        Ok(()) // reported here, and the library has no other use for it
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

/// An HTTP client for a thread that has no runtime.
#[derive(Debug)]
struct Collector {
    client: Arc<HyperClient<hyper_rustls::HttpsConnector<HttpConnector>>>,
    runtime: Handle,
}

impl Collector {
    fn new() -> anyhow::Result<Self> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls::client(None)?);
        let connector = builder.https_or_http().enable_http1().wrap_connector(http);
        let client = Arc::new(HyperClient::new(connector, PATIENCE, None));
        Ok(Collector { client, runtime: Handle::current() })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}
