"""Which call a request belongs to, and the spans of its steps."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from mesh import Class, Database
from mesh.raw import Body, Effects, Request, Store, Worker
from mesh.requests import tracing
from mesh.requests.tracing import CALL, TRACEPARENT, TRAIL, about, valid_traceparent
from tests.support.backend import Backend

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def worker_that_passes_on(seen: list[tuple[str, str, str]]) -> Worker:
    """Return a worker of which `count.first` sends `count.second` to a database."""
    worker = Worker()

    @worker.handles("count.first")
    async def first(request: Request, store: Store, transaction: Effects) -> Body:
        seen.append(("first", CALL.get(), TRACEPARENT.get()))
        transaction.send(Database(request.body["to"]), "count.second", {})
        return {}

    @worker.handles("count.second")
    async def second(request: Request, store: Store, transaction: Effects) -> None:
        seen.append(("second", CALL.get(), TRACEPARENT.get()))

    return worker


async def test_a_call_and_its_trace_go_with_every_request(backend: Backend) -> None:
    """The handler and what it sends get both; the next call does not."""
    seen: list[tuple[str, str, str]] = []
    one = await backend.join(worker_that_passes_on(seen))
    call, trace = CALL.set("req-1"), TRACEPARENT.set(PARENT)
    await one.call(Class(one.cls), "count.first", {"to": one.database})
    CALL.reset(call)
    TRACEPARENT.reset(trace)
    async with asyncio.timeout(5):
        while len(seen) < 2:
            await asyncio.sleep(0.01)
        await one.call(Class(one.cls), "count.first", {"to": one.database})
        while len(seen) < 4:
            await asyncio.sleep(0.01)
    assert seen == [("first", "req-1", PARENT), ("second", "req-1", PARENT), ("first", "", ""), ("second", "", "")]


async def test_the_fields_are_there_only_where_they_are_set(backend: Backend) -> None:
    """An entry is for people too."""
    redis: Any = backend.redis()
    worker, entries = Worker(), []

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        entries.extend(fields for _, fields in await redis.xrange(request.stream, request.id, request.id))
        return {}

    one = await backend.join(worker)
    call = CALL.set("req-1")
    await one.call(Class(one.cls), "count.put", {})
    CALL.reset(call)
    await one.call(Class(one.cls), "count.put", {})
    first, second = entries
    assert first.pop("call") == "req-1"
    assert first.keys() == second.keys() == {"op", "request", "from", "reply_to", "deadline", "body"}
    await redis.aclose()


async def test_a_reply_tells_which_request_it_answers_who_worked_and_how_long(backend: Backend) -> None:
    """The caller's TRAIL has these facts, and so has the entry on the stream of replies."""
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        await asyncio.sleep(0.02)
        return {"id": request.id}

    one = await backend.join(worker)
    trail: list[Any] = []
    TRAIL.set(trail)
    body = await one.call(Class(one.cls), "count.put", {})
    await one.gather("count.put", {})
    (to, fields), (to_database, _) = trail
    assert (to, to_database) == (one.cls, f"db{one.database}")
    assert (fields["asked"], fields["from"], fields["db"]) == (body["id"], one.id, str(one.database))
    assert 20_000 <= int(fields["took_us"]) < 5_000_000


@pytest.mark.parametrize(
    ("call", "traceparent", "word"),
    [
        ("", "", ""),
        ("abc", "", "call abc"),
        ("", PARENT, f" traceparent {PARENT}"),
        ("abc", PARENT, f"call abc traceparent {PARENT}"),
        ("a b", "", ""),
        ("x" * 201, "", ""),
        ("a\nb", PARENT, f" traceparent {PARENT}"),
    ],
)
def test_a_name_that_is_no_word_is_left_out(call: str, traceparent: str, word: str) -> None:
    """The scripts take the word apart at its spaces."""
    CALL.set(call)
    TRACEPARENT.set(traceparent)
    assert about() == word
    CALL.set("")
    TRACEPARENT.set("")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (PARENT, True),
        ("", False),
        (PARENT.upper(), False),
        (PARENT + "-1", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
    ],
)
def test_a_trace_context_is_that_of_the_w3c(text: str, valid: bool) -> None:
    """Anything else is as if there was none."""
    assert valid_traceparent(text) == (text if valid else "")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Spans of an SDK that keeps them in memory."""
    pytest.importorskip("opentelemetry.sdk")
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    memory: Any = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    trace: Any = importlib.import_module("opentelemetry.trace")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(tracing, "_tracer", None)
    yield exporter


async def test_one_trace_has_every_step(exported: Any, backend: Backend) -> None:
    """The trace goes from the caller's context through submission, handler and commit to what the handler sent."""
    seen: list[tuple[str, str, str]] = []
    one = await backend.join(worker_that_passes_on(seen))
    TRACEPARENT.set(PARENT)
    await one.call(Class(one.cls), "count.first", {"to": one.database})
    async with asyncio.timeout(5):
        while len(exported.get_finished_spans()) < 5:
            await asyncio.sleep(0.01)
    spans = exported.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    by_id = {span.context.span_id: span for span in spans}
    paths = sorted(_path(span, by_id) for span in spans)
    a, db = f"mesh:requests:{one.cls}", f"mesh:requests:db{one.database}"
    assert paths == [
        [f"send {a}"],
        [f"send {a}", f"process {a}"],
        [f"send {a}", f"process {a}", "commit"],
        [f"send {a}", f"process {a}", f"process {db}"],
        [f"send {a}", f"process {a}", f"process {db}", "commit"],
    ]
    process = next(span for span in spans if span.name == f"process {a}")
    assert process.attributes["messaging.system"] == "redis" and process.attributes["mesh.deliveries"] == 1


def _path(span: Any, by_id: dict[int, Any]) -> list[str]:
    parent = by_id.get(span.parent.span_id) if span.parent else None
    return [*(_path(parent, by_id) if parent else []), span.name]


async def test_without_an_sdk_no_span_is_made(backend: Backend) -> None:
    """The API alone changes nothing."""
    await backend.join()
    assert not tracing.is_on()
