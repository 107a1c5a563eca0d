//! The span of a callback's request, with the attributes of OpenTelemetry's semantic conventions for HTTP. Only
//! of authentic ones: a stranger must not fill the collector, or decide what is recorded. Never the query, which
//! holds the signature.

use axum::http::Version;
use axum::http::header::{HOST, USER_AGENT};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::response::Response;

use super::Ingress;
use crate::requests::Entry;
use crate::server::Peer;
use crate::spans::{Span, SpanKind, attribute};
use crate::trace::TraceContext;

impl Ingress {
    /// Starts it, and returns the trace that the callback belongs to, if that is known already.
    pub(super) fn span(&self, head: &Parts, entry: &mut Entry<'_>) -> (Span, Option<TraceContext>) {
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let brought = text("traceparent").and_then(TraceContext::parse);
        if !self.spans.are_on() {
            entry.belongs_to(brought);
            return (Span::none(), brought);
        }
        let path = &self.config.path;
        let mut span = self.spans.start(SpanKind::Server, format!("POST {path}"), brought);
        entry.belongs_to(span.context());
        if span.is_recording() {
            span.set(attribute::HTTP_REQUEST_METHOD, "POST");
            span.set(attribute::HTTP_ROUTE, path.clone());
            span.set(attribute::URL_PATH, path.clone());
            let scheme = if self.config.tls.is_some() { "https" } else { "http" };
            span.set(attribute::URL_SCHEME, scheme);
            let version = if head.version == Version::HTTP_2 { "2" } else { "1.1" };
            span.set(attribute::NETWORK_PROTOCOL_VERSION, version);
            if let Some(Peer(address)) = head.extensions.get::<Peer>() {
                span.set(attribute::NETWORK_PEER_ADDRESS, address.ip().to_string());
                span.set(attribute::NETWORK_PEER_PORT, i64::from(address.port()));
            }
            let host = text(HOST.as_str()).and_then(|host| host.parse::<Authority>().ok());
            if let Some(authority) = host.as_ref().or(head.uri.authority()) {
                span.set(attribute::SERVER_ADDRESS, authority.host().to_owned());
                if let Some(port) = authority.port_u16() {
                    span.set(attribute::SERVER_PORT, i64::from(port));
                }
            }
            if let Some(agent) = text(USER_AGENT.as_str()) {
                span.set(attribute::USER_AGENT_ORIGINAL, agent.to_owned());
            }
        }
        let context = span.context();
        (span, context)
    }
}

/// Notes what became of it.
pub(super) fn answered(span: &mut Span, response: &Response, entry: &Entry<'_>) {
    if !span.is_recording() {
        return;
    }
    let status = response.status();
    span.set(attribute::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16()));
    if let Some(outcome) = entry.outcome() {
        span.set("topic_bridge.outcome", outcome);
    }
    if let Some(command) = entry.command() {
        span.set("topic_bridge.command", command.to_owned());
    }
    if status.is_server_error() {
        span.fail(status.as_str().to_owned(), entry.reason().to_owned());
    }
}
