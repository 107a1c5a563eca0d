//! Spans for OpenTelemetry: a callback's request, its commit, its wait in the outbox, and each attempt to publish
//! it, all in the trace that its request brought or that begins here. What is started is sent to a collector once
//! it ends, in the background; nothing waits for that, and nothing is lost but spans when the collector is away.
//!
//! Names of attributes are those of OpenTelemetry's semantic conventions. Where spans are not switched on, or the
//! build leaves them out, every method here does nothing.

mod config;
#[cfg(feature = "otlp")]
mod otlp;

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};

use crate::time::Timestamp;
use crate::trace::{TraceContext, TraceId};
pub(crate) use config::Config;
pub(crate) use opentelemetry::trace::SpanKind;
pub(crate) use opentelemetry_semantic_conventions::attribute;

#[cfg(feature = "otlp")]
type Tracer = opentelemetry_sdk::trace::SdkTracer;
#[cfg(not(feature = "otlp"))]
type Tracer = opentelemetry::trace::noop::NoopTracer;

/// Where spans are started.
#[derive(Clone)]
pub(crate) struct Spans {
    tracer: Option<Tracer>,
}

/// What sends the spans that have ended.
pub(crate) struct Exporter {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Something that takes time. Ends when it is dropped.
pub(crate) struct Span(Option<<Tracer as opentelemetry::trace::Tracer>::Span>);

impl Spans {
    /// Connects to nobody yet. Runs on the runtime that it is called on.
    pub(crate) fn new(config: &Config) -> anyhow::Result<(Self, Exporter)> {
        #[cfg(feature = "otlp")]
        return otlp::start(config);
        #[cfg(not(feature = "otlp"))]
        {
            let _ = config; // an endpoint is refused where it is read
            Ok((Spans::off(), Exporter {}))
        }
    }

    pub(crate) fn off() -> Self {
        Spans { tracer: None }
    }

    pub(crate) fn are_on(&self) -> bool {
        self.tracer.is_some()
    }

    /// Starts a span now. Without a parent it begins a trace.
    pub(crate) fn start(
        &self,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
    ) -> Span {
        self.build(SpanBuilder::from_name(name).with_kind(kind), parent)
    }

    /// Notes what began then, inside this process, and is over now.
    pub(crate) fn note(
        &self,
        name: &'static str,
        parent: Option<TraceContext>,
        began: Timestamp,
        ended: SystemTime,
    ) {
        let began = UNIX_EPOCH + Duration::from_millis(began.as_millis());
        let builder = SpanBuilder::from_name(name).with_start_time(began.min(ended));
        if let Span(Some(mut span)) = self.build(builder, parent) {
            span.end_with_timestamp(ended);
        }
    }

    fn build(&self, builder: SpanBuilder, parent: Option<TraceContext>) -> Span {
        let Some(tracer) = &self.tracer else { return Span(None) };
        let context = match parent {
            None => Context::new(),
            Some(TraceContext { trace, span, flags }) => {
                Context::new().with_remote_span_context(SpanContext::new(
                    trace.0.into(),
                    SpanId::from(span),
                    TraceFlags::new(flags),
                    true,
                    TraceState::NONE,
                ))
            }
        };
        Span(Some(tracer.build_with_context(builder, &context)))
    }
}

impl Span {
    pub(crate) fn none() -> Self {
        Span(None)
    }

    /// For those that it causes, also in other processes.
    pub(crate) fn context(&self) -> Option<TraceContext> {
        let context = self.0.as_ref()?.span_context();
        Some(TraceContext {
            trace: TraceId(u128::from_be_bytes(context.trace_id().to_bytes())),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            flags: context.trace_flags().to_u8(),
        })
    }

    /// Whether anybody will see it: if not, working out its attributes is a waste.
    pub(crate) fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|span| span.is_recording())
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// What it was for did not succeed. `kind` is one of few words.
    pub(crate) fn fail(&mut self, kind: impl Into<Value>, reason: impl Into<Cow<'static, str>>) {
        self.set(attribute::ERROR_TYPE, kind);
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(reason));
        }
    }
}

impl Exporter {
    /// Sends what is left, for a second or two at most. Blocks.
    pub(crate) fn close(self) {
        #[cfg(feature = "otlp")]
        otlp::close(self);
    }
}
