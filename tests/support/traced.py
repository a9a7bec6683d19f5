"""`python -m tests.support.traced`: a replica with an SDK of OpenTelemetry, which sends spans over OTLP.

OTEL_EXPORTER_OTLP_ENDPOINT says where to; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES name the process.
"""

from __future__ import annotations

import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from quart_app.process import main


def run() -> int:
    """Set up the SDK, then be a replica. The last spans are sent at the end."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    return main()


if __name__ == "__main__":
    sys.exit(run())
