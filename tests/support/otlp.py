"""Spans as a collector gets them: a server for OTLP over HTTP, and replicas with an SDK that sends to it."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

#: The names of `SpanKind` in OTLP.
KINDS = ("", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")


@dataclass(frozen=True)
class ReceivedSpan:
    """One span; times are ns since 1970."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    source: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: Sequence[tuple[str, int, dict[str, Any]]] = ()


@dataclass
class Receiver:
    """The spans that were received so far."""

    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)

    def of(self, trace: str) -> list[ReceivedSpan]:
        """Return the spans of one trace, the earliest first."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.begin_ns)

    def path(self, span: ReceivedSpan) -> list[str]:
        """Return the names of a span and of what it is a part of, the outermost first."""
        (*above,) = (each for each in self.spans if (each.trace, each.id) == (span.trace, span.parent))
        return [*(self.path(above[0]) if above else []), span.name]


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """Receive spans at `endpoint` while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found.spans.extend(_spans(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Receiver(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def _spans(body: bytes) -> Iterator[ReceivedSpan]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _attributes(resource.resource.attributes)
        source = about.get("service.instance.id") or about.get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name, KINDS[span.kind],
                    str(source), span.start_time_unix_nano, span.end_time_unix_nano, _attributes(span.attributes),
                    [(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events],
                )  # fmt: skip


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
