"""A consumer that goes on with the trace of a message: consumer.py COLLECTOR TRACEPARENT, with OpenTelemetry's own SDK."""

import sys

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

collector, traceparent = sys.argv[1:]
provider = TracerProvider(resource=Resource.create({"service.name": "consumer"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector}/v1/traces")))
message_headers = {"traceparent": traceparent}
tracer = provider.get_tracer("consumer")
with tracer.start_as_current_span("process", context=extract(message_headers), kind=SpanKind.CONSUMER):
    pass
provider.shutdown()
