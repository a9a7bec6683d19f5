"""One trace of a request from Caddy through every replica that works for it, as an OTLP receiver gets it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from quart_app.local.caddy import Site, balancer, find_caddy
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from tests.support.browser import browser, needs_chromium
from tests.support.otlp import ReceivedSpan, Receiver, receiver
from tests.support.replicas import Process, Replicas
from tests.support.trace_picture import drawn
from tests.support.waiting import eventually

pytestmark = [pytest.mark.skipif(find_caddy() is None, reason="no Caddy here"), pytest.mark.slow]

#: The spans of a POST that one replica answers, from the outermost on.
SUBMITTED = ["caddy", "POST /values", "send mesh:requests:A"]
WORKED = [*SUBMITTED, "process mesh:requests:A"]


@dataclass
class Traced:
    """Three replicas behind Caddy. All of them send their spans to one receiver."""

    spans: Receiver
    client: httpx.AsyncClient
    replicas: dict[str, Process]

    async def ask(self, method: str, path: str, body: Any = None, at: str = "") -> str:
        """Send a request with a trace of its own, through Caddy or to one replica; return the id of the trace."""
        trace = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": trace}
        where = self.replicas[at].public if at else ""
        answer = await self.client.request(method, where + path, json=body, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return trace

    async def paths(self, trace: str, *wanted: list[str]) -> list[list[str]]:
        """Return the paths of all spans of a trace once these are among them; each is sent soon after its end."""
        found: list[list[str]] = []

        async def complete() -> bool:
            found[:] = [self.spans.path(span) for span in self.spans.of(trace)]
            return all(path in found for path in wanted)

        await eventually(complete, 10, lambda: "\n".join(map(str, found)))
        return found

    def one(self, trace: str, name: str) -> ReceivedSpan:
        """Return the only span of a trace with this name."""
        (span,) = (each for each in self.spans.of(trace) if each.name == name)
        return span


@pytest.fixture
def spans() -> Iterator[Receiver]:
    """The receiver of a test."""
    with receiver() as found:
        yield found


@pytest.fixture
async def traced(replicas: Replicas, spans: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    """Start the replicas and Caddy."""
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": spans.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    processes = {}
    for name in ("A1", "A2", "B1"):
        about = {"OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={name}", "MESH_CLASS": name[0]}
        processes[name] = replicas.spawn({**told, **about}, module="tests.support.traced")
    for process in processes.values():
        await replicas.ready(process)
    of_caddy = {"CADDY_TRACING": "traced", "OTEL_SERVICE_NAME": "caddy", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    for name, value in {**told, **of_caddy}.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    # The other one only works for them, so that it can die without a lost connection.
    upstreams = [processes[name].public.removeprefix("http://") for name in ("A2", "B1")]
    async with balancer(Supervisor(print), Site(port, upstreams)):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def is_there() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await eventually(is_there, 15)
            yield Traced(spans, client, processes)


async def test_a_call_is_one_trace_from_caddy_to_the_reply(traced: Traced) -> None:
    """Each step has its span, in its place, with the attributes that the conventions for messaging name."""
    trace = await traced.ask("POST", "/values", [{"value": 720720, "ttl": 60, "cls": "A"}])
    found = await traced.paths(trace, ["caddy"], [*WORKED, "commit"])
    assert sorted(found) == [SUBMITTED[:1], SUBMITTED[:2], SUBMITTED, WORKED, [*WORKED, "commit"]]
    outermost = traced.one(trace, "caddy")
    assert (outermost.kind, outermost.parent) == ("SERVER", "00f067aa0ba902b7"), "it continues the client's trace"

    server = traced.one(trace, "POST /values")
    assert server.kind == "SERVER"
    assert server.attributes["http.request.method"] == "POST" and server.attributes["http.route"] == "/values"
    assert server.attributes["http.response.status_code"] == 200 and server.attributes["url.path"] == "/values"

    send = traced.one(trace, "send mesh:requests:A")
    assert send.kind == "PRODUCER" and send.source == server.source
    assert send.attributes["messaging.system"] == "redis"
    assert send.attributes["messaging.destination.name"] == "mesh:requests:A"
    (submitted, at, _), (reply, replied, about) = send.events
    assert (submitted, reply) == ("submitted", "reply") and send.begin_ns <= at <= replied <= send.end_ns
    assert about["mesh.status"] == "ok" and about["mesh.replica"].startswith("replica-")

    process = traced.one(trace, "process mesh:requests:A")
    assert process.kind == "CONSUMER" and process.attributes["messaging.operation.name"] == "values.put"
    assert process.attributes["mesh.deliveries"] == 1 and process.attributes["messaging.message.id"].endswith("-0")
    assert traced.one(trace, "commit").kind == "INTERNAL"


async def test_a_gather_has_a_span_at_each_replica(traced: Traced) -> None:
    """One trace over three processes: each holds a multiple of the prime, or it would not be asked."""
    for number in range(0, 80, 2):
        items = [{"value": 7 * (1000 + number + k), "ttl": 60, "cls": cls} for k, cls in enumerate("AB")]
        await traced.ask("POST", "/values", items, at="B1")
    trace = await traced.ask("GET", "/values/7", at="B1")
    send = ["GET /values/<prime>", "send mesh:requests:*"]
    await traced.paths(trace, *([*send, f"process mesh:requests:db{n}"] for n in (1, 2, 3)))
    working = [span.source for span in traced.spans.of(trace) if span.kind == "CONSUMER"]
    assert sorted(working) == ["A1", "A2", "B1"]


async def test_a_forwarded_request_stays_in_its_trace(traced: Traced) -> None:
    """A replica of the class that does not hold the value passes the request on to the database that does."""
    items = [{"value": 720720, "ttl": 60, "cls": "A"}]
    for _ in range(40):
        trace = await traced.ask("POST", "/values", items, at="B1")
        await traced.paths(trace, WORKED[1:])
        passed_on = [span for span in traced.spans.of(trace) if span.name.startswith("process mesh:requests:db")]
        if passed_on:
            break
    path = [*WORKED[1:], passed_on[0].name]
    assert traced.spans.path(passed_on[0]) == path
    await traced.paths(trace, [*path, "commit"])
    first = traced.one(trace, "process mesh:requests:A")
    assert {first.source, passed_on[0].source} == {"A1", "A2"}
    replies = [about["mesh.database"] for name, _, about in traced.one(trace, SUBMITTED[2]).events if name == "reply"]
    assert len(replies) == 2, "the one that passed it on, and the one that did it"


@needs_chromium
async def test_a_request_of_a_dead_replica_stays_in_its_trace(traced: Traced, tmp_path: Path) -> None:
    """Its second delivery says so. PICTURES=docs/pictures makes the picture of docs/operations.md."""
    items = [{"value": 10**12 + 39, "ttl": 60, "cls": "A"}, {"value": 1001, "ttl": 60, "cls": "B"}]
    both = [*SUBMITTED[:2], "send mesh:requests:A mesh:requests:B"]
    dying = traced.replicas["A1"]
    # Of two replicas that wait for requests the server hands one to either. The other one takes it over.
    for _ in range(20):
        dying.send(signal.SIGSTOP)
        trace = await traced.ask("POST", "/values", items)
        await traced.paths(trace, ["caddy"], [*both, "process mesh:requests:A", "commit"])
        working = traced.one(trace, "process mesh:requests:A")
        if working.attributes["mesh.deliveries"] == 2:
            break
        dying.send(signal.SIGCONT)
        await traced.ask("GET", "/values/2")  # it waits for requests again
    dying.kill()
    assert working.attributes["mesh.deliveries"] == 2 and working.source == "A2"
    await traced.paths(trace, [*both, "process mesh:requests:B", "commit"])
    folder = Path(os.environ.get("PICTURES", tmp_path))
    async with browser() as chromium:
        page = await chromium.new_page(viewport={"width": 1280, "height": 200})
        await page.set_content(drawn(traced.spans.of(trace)))
        await page.screenshot(path=folder / "trace.png", full_page=True)
