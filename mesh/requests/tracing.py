"""Which call a request belongs to, from the HTTP request through every replica that works for it.

    call         the X-Request-Id of the HTTP request, or any other name that the caller sets
    traceparent  the W3C trace context: "00-<trace id>-<span id>-<flags>"

If they are set, they are fields of the request's entry; if not, they cost nothing. A handler runs with those of its
request, so the requests that it sends and its log lines have them, too.

If there is OpenTelemetry with an SDK that provides tracers (`opentelemetry-instrument python -m quart_app`), each step
is also a span. `activate` looks for it once; without it nothing here creates a span.

    SERVER    POST /values               quart_app.http.application
    PRODUCER  send mesh:requests:A       from the submission to the last reply; events: submitted, and each reply
    CONSUMER  process mesh:requests:A    each delivery, from the handler to the commit
    INTERNAL  commit                     until the result of the commit is there; `Work` ends it
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Awaitable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

#: What the current task puts into the fields `call` and `traceparent` of the requests that it sends; "" for nothing.
CALL: ContextVar[str] = ContextVar("mesh_call", default="")
TRACEPARENT: ContextVar[str] = ContextVar("mesh_traceparent", default="")
#: Collects the address and the fields of each reply to the requests of this call, for the journey that the HTTP answer
#: can show. None if nobody wants them.
TRAIL: ContextVar[list[tuple[str, Mapping[str, str]]] | None] = ContextVar("mesh_trail", default=None)

#: The values that the field `call` of an entry may have: readable, without spaces, and short, because each entry of the
#: call repeats them.
_CALL_PATTERN = re.compile(r"[!-~]{1,200}")
_TRACEPARENT_PATTERN = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

#: The module `opentelemetry.trace`, and our tracer; None if no spans are created. `Any`: OpenTelemetry is optional.
_trace: Any = None
_tracer: Any = None


def is_on() -> bool:
    """Return whether spans are created."""
    return _tracer is not None


def activate() -> None:
    """Create spans from now on if OpenTelemetry is installed and has an SDK. Called once per membership."""
    global _trace, _tracer
    with contextlib.suppress(ImportError):
        trace: Any = importlib.import_module("opentelemetry.trace")
        provider = trace.get_tracer_provider()
        # These two classes stand for a missing SDK: their spans go nowhere.
        if not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            _trace, _tracer = trace, trace.get_tracer("quart-mesh", tracer_provider=provider)


def valid_traceparent(text: str) -> str:
    """Return a W3C trace context as it was given, or "" for anything else."""
    return text if _TRACEPARENT_PATTERN.fullmatch(text) else ""


def trace_id() -> str:
    """Return the id of the current trace, or ""."""
    return TRACEPARENT.get()[3:35]  # after the version "00-", 32 hexadecimal digits


def about() -> str:
    """Return the fields `call` and `traceparent` for the entry of a request to send; "" if neither is set.

    They are one word "name value name value", as submit.lua and commit.lua read it.
    """
    call, traceparent = CALL.get(), TRACEPARENT.get()
    if not call and not traceparent:
        return ""
    call_field = f"call {call}" if call and _CALL_PATTERN.fullmatch(call) else ""
    return f"{call_field} traceparent {traceparent}" if traceparent else call_field


def sending(stream: str, op: str, count: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the attributes of the span of a submission."""
    return f"send {stream}", {**_messaging(stream, op), "messaging.operation.type": "send", "mesh.requests": count}


def processing(stream: str, op: str, id: str, deliveries: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the attributes of the span of a delivery."""
    attributes = {"messaging.operation.type": "process", "messaging.message.id": id, "mesh.deliveries": deliveries}
    return f"process {stream}", {**_messaging(stream, op), **attributes}


def replying(status: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes of the event "reply" of a submission's span: its status, and where it comes from."""
    return {"mesh.status": status, "mesh.replica": fields.get("from", ""), "mesh.database": fields.get("db", "")}


def _messaging(stream: str, op: str) -> dict[str, Any]:
    """Return the attributes that the spans of submissions and deliveries share."""
    return {"messaging.system": "redis", "messaging.destination.name": stream, "messaging.operation.name": op}


async def traced(awaitable: Awaitable[T], span_kind: str, name: str, attributes: Mapping[str, Any]) -> T:
    """Await something within a new span. `span_kind` is OpenTelemetry's: the first column of the table at the top."""
    with span(span_kind, name, attributes):
        return await awaitable


@contextlib.contextmanager
def span(span_kind: str, name: str, attributes: Mapping[str, Any]) -> Iterator[Any]:
    """Run a block within a new span, the parent of all spans that begin in the block. Call this only if `is_on`."""
    new_span = begin(span_kind, name, attributes)
    token = TRACEPARENT.set(_traceparent_of(new_span))
    try:
        with _trace.use_span(new_span, end_on_exit=True):
            yield new_span
    finally:
        TRACEPARENT.reset(token)


def current() -> Any:
    """Return the span that this code runs in, or None where no spans are created."""
    return None if _tracer is None else _trace.get_current_span()


def begin(span_kind: str, name: str, attributes: Mapping[str, Any]) -> Any:
    """Begin a span, which its caller ends with `end()`. Call this only if `is_on`."""
    return _tracer.start_span(name, _parent(), kind=_trace.SpanKind[span_kind], attributes=dict(attributes))


def _parent() -> Any:
    """Return the context that makes a new span a child of the span in TRACEPARENT.

    None makes the new span a child of the current span. The result is None if TRACEPARENT is not set. It is also None
    if TRACEPARENT names the trace of the current span, because then the current span is the nearer parent.
    """
    current_context, parent_traceparent = _trace.get_current_span().get_span_context(), TRACEPARENT.get()
    if (
        not parent_traceparent
        or (  # its characters 3 to 34 are the id of the trace
            current_context.is_valid and f"{current_context.trace_id:032x}" == parent_traceparent[3:35]
        )
    ):
        return None
    _, trace_hex, span_hex, flags_hex = parent_traceparent.split("-")
    # True: the span is of another process or of another task.
    parent = _trace.SpanContext(int(trace_hex, 16), int(span_hex, 16), True, _trace.TraceFlags(int(flags_hex, 16)))
    return _trace.set_span_in_context(_trace.NonRecordingSpan(parent))


def _traceparent_of(new_span: Any) -> str:
    context = new_span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
