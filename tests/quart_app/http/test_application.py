"""The application as a whole: metrics, log lines, bounds, and requests whose client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client import CollectorRegistry
from quart import Response, jsonify, request, session
from structlog.testing import capture_logs
from werkzeug.exceptions import NotFound

from quart_app.http import server
from quart_app.http.application import Application
from quart_app.http.metrics import RequestMetrics
from quart_app.http.problems import Problem
from quart_app.http.request_log import MOST_LINES_PER_S
from quart_app.http.sockets import listen
from quart_app.settings import AppSettings


@dataclass
class Followed:
    """An application with routes that end in every way, and its metrics."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    app: Application = field(init=False)

    def __post_init__(self) -> None:
        settings = AppSettings(port=0, private_port=0)
        self.app = Application("followed", settings, RequestMetrics(self.registry), is_leaving=lambda: False)
        self.app.get("/people/<name>")(self._person)
        self.app.get("/refused")(self._refused)
        self.app.get("/broken")(self._broken)
        self.app.get("/never")(self._never)
        self.app.get("/bits")(self._bits)
        self.app.get("/half")(self._half)

    async def _person(self, name: str) -> Response:
        return jsonify({"z": name, "id": structlog.contextvars.get_contextvars()["request_id"], "a": Decimal("1.5")})

    async def _refused(self) -> Response:
        raise Problem(503, "not now", retry_after=1)

    async def _broken(self) -> Response:
        raise RuntimeError

    async def _never(self) -> Response:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Response("")

    async def _bits(self) -> AsyncIterator[bytes]:
        async def bits() -> AsyncIterator[bytes]:
            yield b"one "
            yield b"two"

        return bits()

    async def _half(self) -> AsyncIterator[bytes]:
        async def half() -> AsyncIterator[bytes]:
            yield b"one "
            raise RuntimeError("the second is missing")

        return half()

    def counted(self, method: str, route: str, status: int) -> float | None:
        labels = {"method": method, "route": route, "status": str(status)}
        return self.registry.get_sample_value("mesh_http_requests_total", labels)


@pytest.fixture
async def followed() -> Followed:
    return Followed()


@dataclass
class Serving:
    """An application on a port."""

    address: str
    stop: asyncio.Event
    running: asyncio.Task[None]


@contextlib.asynccontextmanager
async def serving(app: Application, grace_s: float) -> AsyncIterator[Serving]:
    sockets = listen(AppSettings(port=0, private_port=0, host="127.0.0.1"))
    stop = asyncio.Event()
    running = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=grace_s))
    yield Serving(sockets.address(sockets.public), stop, running)
    stop.set()
    await running
    sockets.close()


#: (path, status, route)
ENDINGS = [
    ("/people/ada", 200, "/people/<name>"),
    ("/refused", 503, "/refused"),
    ("/broken", 500, "/broken"),
    ("/nowhere/at/all", 404, "none"),
]


@pytest.mark.parametrize(("path", "status", "route"), ENDINGS)
async def test_every_answer_is_followed(followed: Followed, path: str, status: int, route: str) -> None:
    """The answer repeats its id; one count and one log line name the route, never the path; errors get a level."""
    with capture_logs() as said:
        response = await followed.app.test_client().get(path, headers={"X-Request-ID": "abc-1"})
    assert (response.status_code, response.headers["X-Request-ID"]) == (status, "abc-1")
    assert followed.counted("GET", route, status) == 1
    assert followed.registry.get_sample_value("mesh_http_request_duration_seconds_count", {"route": route}) == 1
    lines = [line for line in said if line["event"] == "request"]
    level = "warning" if status >= 500 else "info" if status >= 400 else "debug"
    (line,) = lines
    assert 0 <= line.pop("ms") < 5000
    assert bool(line.pop("detail", "")) == (status >= 400)
    assert line == {"event": "request", "log_level": level, "method": "GET", "route": route, "status": status}


@pytest.mark.parametrize(
    ("path", "other", "level", "detail"),
    [("/refused", "/nowhere", "warning", "not now"), ("/nowhere", "/refused", "info", NotFound.description)],
)
async def test_an_error_is_logged_with_its_reason_up_to_a_rate(
    followed: Followed, monkeypatch: pytest.MonkeyPatch, path: str, other: str, level: str, detail: str
) -> None:
    """Many errors do not fill the log; the next line says how many are missing. Each kind has its own rate."""
    now = 100.5
    monkeypatch.setattr(time, "monotonic", lambda: now)
    client = followed.app.test_client()
    with capture_logs() as said:
        for _ in range(MOST_LINES_PER_S + 5):
            await client.get(path)
        await client.get(other)
        now += 1
        await client.get(path)
    lines = [line for line in said if line["event"] == "request" and line["log_level"] == level]
    assert len(lines) == MOST_LINES_PER_S + 1
    assert {line["detail"] for line in lines} == {detail}
    assert all(line["ms"] >= 0 for line in lines)
    assert [line["suppressed"] for line in lines if "suppressed" in line] == [5]
    assert len([line for line in said if line["event"] == "request"]) == MOST_LINES_PER_S + 2


async def test_what_is_logged_below_a_request_has_its_id(followed: Followed) -> None:
    """Each request has its own id."""
    client = followed.app.test_client()
    responses = await asyncio.gather(*(client.get("/people/ada") for _ in range(3)))
    ids = [(await response.get_json())["id"] for response in responses]
    assert ids == [response.headers["X-Request-ID"] for response in responses]
    assert len(set(ids)) == 3


async def test_methods_that_somebody_made_up_are_counted_together(followed: Followed) -> None:
    """Callers can invent methods without end, and each would be a time series."""
    for method in ("BREW", "WHEN"):
        assert (await followed.app.test_client().open("/refused", method=method)).status_code == 405
    assert followed.counted("other", "none", 405) == 2


async def test_numbers_leave_exact_and_never_as_what_is_no_json(followed: Followed) -> None:
    """Numbers keep all digits; NaN is written as null."""

    @followed.app.get("/numbers")
    async def numbers() -> Response:
        return jsonify([10**1000 + 1, -(2**64), float("nan")])

    response = await followed.app.test_client().get("/numbers")
    assert await response.get_data() == f"[{10**1000 + 1},{-(2**64)},null]\n".encode()


async def test_answers_are_plain_json_in_the_order_given(followed: Followed) -> None:
    """The JSON is compact, and has the types that Quart adds to those of JSON."""
    response = await followed.app.test_client().get("/people/ada", headers={"X-Request-ID": "x"})
    assert await response.get_data() == b'{"z":"ada","id":"x","a":"1.5"}\n'
    assert response.content_type == "application/json"


async def test_who_has_gone_is_no_longer_worked_for(followed: Followed) -> None:
    """The route is cancelled, nothing is counted or logged, and the application goes on."""
    async with serving(followed.app, 1) as there, asyncio.timeout(10):
        host, _, port = there.address.rpartition(":")
        with capture_logs() as said, socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await followed.begun.wait()
            client.close()
            await followed.cancelled.wait()
        async with httpx.AsyncClient(base_url=f"http://{there.address}") as client:
            for _ in range(20):  # by one connection
                assert (await client.get("/people/ada")).status_code == 200
    assert followed.counted("GET", "/people/<name>", 200) == 20
    assert followed.counted("GET", "/never", 200) is None
    assert not said


async def test_an_end_from_outside_is_not_taken_for_a_client_that_has_gone(followed: Followed) -> None:
    """A request that is not answered when the server's grace ends gets 503."""
    async with serving(followed.app, 0.1) as there, asyncio.timeout(10), httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.get(f"http://{there.address}/never"))
        await followed.begun.wait()
        there.stop.set()
        answer = await asking
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert followed.cancelled.is_set()


@pytest.mark.parametrize("host", ["x", "X.test:8000", "127.0.0.1:80", "[::1]:80"])
async def test_every_host_has_the_same_routes(followed: Followed, host: str) -> None:
    """A balancer, a probe and a browser call the same replica by different names."""
    response = await followed.app.test_client().get("/people/ada", headers={"Host": host})
    assert response.status_code == 200


async def test_nothing_is_kept_in_sessions_of_quarts(followed: Followed) -> None:
    """All requests share one empty session, so nothing may be written to it."""

    @followed.app.get("/keep")
    async def keep() -> str:
        session["name"] = "ada"
        return ""

    assert (await followed.app.test_client().get("/keep")).status_code == 500


async def _said(app: Application, path: str) -> list[dict[str, Any]]:
    """Return the messages that the application sends to the server for a GET."""
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])
    said: list[dict[str, Any]] = []

    async def receive() -> Any:
        for message in asked:
            return message
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode()}
    scope |= {"root_path": "", "query_string": b"", "headers": [(b"host", b"here")], "http_version": "1.1"}
    await app(scope, receive, send)  # type: ignore[arg-type]
    return said


async def test_an_answer_that_is_there_goes_in_two_messages(followed: Followed) -> None:
    """A whole answer takes two messages; a streamed one has a third for its end."""
    head, body = await _said(followed.app, "/people/Ann")
    assert (head["status"], body["more_body"]) == (200, False)
    assert dict(head["headers"])[b"content-length"] == str(len(body["body"])).encode()
    head, *bits = await _said(followed.app, "/bits")
    assert [(bit["body"], bit["more_body"]) for bit in bits] == [(b"one ", True), (b"two", True), (b"", False)]


async def test_an_answer_that_ends_in_the_middle_is_logged(followed: Followed) -> None:
    """The client cannot be told, because the status was sent before."""
    with capture_logs() as logged:
        async with serving(followed.app, 1) as served, httpx.AsyncClient() as client:
            with contextlib.suppress(httpx.TransportError):
                await client.get(f"http://{served.address}/half")
            async with asyncio.timeout(5):
                while not any(line["event"] == "an answer ended in the middle" for line in logged):
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "credentials", [b"Basic \xa7", b"Basic \xff\xfe", b"Basic !", b"Basic", b"Digest \xa7", b"\xa7"]
)
async def test_credentials_that_cannot_be_read_are_none(followed: Followed, credentials: bytes) -> None:
    """A route that needs credentials then answers 401, not 500."""

    @followed.app.get("/credentials")
    async def shown() -> Response:
        given = request.authorization
        return jsonify(given is None or not given.password)

    async with serving(followed.app, 1) as served, httpx.AsyncClient() as client:
        headers = [(b"Authorization", credentials)]
        answer = await client.get(f"http://{served.address}/credentials", headers=headers)
    assert (answer.status_code, answer.json()) == (200, True)


@pytest.mark.parametrize("path", ["/people/ada", "/refused", "/broken", "/nowhere", "/bits"])
async def test_every_answer_protects_its_reader(followed: Followed, path: str) -> None:
    """No browser guesses the type of an answer, runs it, or frames it."""
    response = await followed.app.test_client().get(path)
    assert response.headers.getlist("X-Content-Type-Options") == ["nosniff"]
    (policy,) = response.headers.getlist("Content-Security-Policy")
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


async def test_a_page_keeps_its_own_policy(followed: Followed) -> None:
    """A page that needs scripts says so itself; the other headers stay."""
    followed.app.get("/page")(lambda: Response("", headers={"Content-Security-Policy": "script-src 'self'"}))
    response = await followed.app.test_client().get("/page")
    assert response.headers.getlist("Content-Security-Policy") == ["script-src 'self'"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/people/ada", "/nowhere"])
async def test_a_request_for_another_host_is_refused(followed: Followed, path: str) -> None:
    """The path does not matter: a page of another site does not even learn which routes exist."""
    response = await followed.app.test_client().get(path, headers={"Host": "evil.example.com"})
    assert response.status_code == 421
    assert "evil.example.com" in (await response.get_json())["detail"]
    assert followed.counted("GET", "/people/<name>" if "people" in path else "none", 421) == 1


@dataclass
class Gauge:
    """An application with small bounds that reads bodies, and answers when it is told to."""

    read: asyncio.Event = field(default_factory=asyncio.Event)
    app: Application = field(init=False)

    def __post_init__(self) -> None:
        settings = AppSettings(
            port=0, private_port=0, max_body_bytes=1024, trusted_proxies="127.0.0.1",
            max_open_bodies_bytes=3000, max_open_bodies_bytes_per_source=2000,
        )  # fmt: skip
        self.app = Application("gauge", settings, RequestMetrics(CollectorRegistry()), is_leaving=lambda: False)
        self.app.post("/")(self._take)

    async def _take(self) -> Response:
        size = len(await request.get_data())
        await self.read.wait()
        return jsonify(size)

    async def ask(self, address: str, size: int, source: str = "192.0.2.1") -> httpx.Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b" " * size

        async with httpx.AsyncClient(timeout=10) as client:
            headers = {"X-Forwarded-For": source}
            return await client.post(f"http://{address}/", content=parts(), headers=headers)

    async def occupied(self, total: int) -> None:
        async with asyncio.timeout(5):
            while self.app.client_usage.bodies.total != total:
                await asyncio.sleep(0.01)


async def test_open_bodies_are_bounded_per_source_and_in_all() -> None:
    """Beyond a bound a request gets 503; once other requests are answered there is room again."""
    gauge = Gauge()
    async with serving(gauge.app, 1) as served, asyncio.TaskGroup() as tasks:
        first = [tasks.create_task(gauge.ask(served.address, 1000)) for _ in range(2)]
        await gauge.occupied(2000)
        same_source = tasks.create_task(gauge.ask(served.address, 500))
        other_source = tasks.create_task(gauge.ask(served.address, 1000, "192.0.2.2"))
        await gauge.occupied(3000)
        third_source = tasks.create_task(gauge.ask(served.address, 1, "192.0.2.3"))
        async with asyncio.timeout(10):
            await asyncio.wait([same_source, third_source])
        gauge.read.set()
    assert [(await one).status_code for one in first] == [200, 200]
    assert (await other_source).json() == 1000
    for refused in (await same_source, await third_source):
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert gauge.app.client_usage.bodies.total == 0
    async with serving(gauge.app, 1) as served:
        assert (await gauge.ask(served.address, 1000)).status_code == 200


async def test_a_body_of_chunks_has_the_same_bound() -> None:
    """The length of such a body is not announced, and the body may be read as it arrives."""
    gauge = Gauge()
    gauge.read.set()

    @gauge.app.post("/streamed")
    async def take() -> Response:
        return jsonify(sum([len(part) async for part in request.body]))

    async with serving(gauge.app, 1) as served:
        host, _, port = served.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /streamed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                writer.write(b"64\r\n" + b" " * 100 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(reader.readline(), 5)
        writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 413")
