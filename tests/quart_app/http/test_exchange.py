"""One request and its answer on the wire: framing, refusals, bodies that wait, and answers that go wrong."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from quart import Quart

from quart_app.http import exchange
from tests.support.serving import raw, served

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Application:
    """An application of bare ASGI that sends these messages for each request, once it has read the body."""

    def __init__(self, *messages: dict[str, Any], reads: bool = True) -> None:
        self.messages = messages
        self.reads = reads
        self.bodies: list[bytes] = []
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        self.scopes.append(scope)
        body, more = b"", self.reads
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        for message in self.messages:
            await send(message)


def head(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def answers(app: Application, *requests: bytes, pause_s: float = 0.0) -> bytes:
    async with served(cast("Quart", app)) as address:
        return await raw(address, *requests, pause_s=pause_s)


LENGTH = (b"content-length", b"4")

#: (request, messages, what the answer ends with, whether it is the last by itself)
FRAMINGS = {
    "a length": (ASK, [head(200, LENGTH), part(b"here")], b"\r\n\r\nhere", False),
    "parts of a length": (ASK, [head(200, LENGTH), part(b"he", more=True), part(b"re")], b"\r\n\r\nhere", False),
    "chunks": (ASK, [head(), part(b"he", more=True), part(b"re")], b"\r\n\r\n2\r\nhe\r\n2\r\nre\r\n0\r\n\r\n", False),
    "empty parts": (ASK, [head(), part(b"", more=True), part(b"")], b"\r\n\r\n0\r\n\r\n", False),
    "no content": (ASK, [head(204), part(b"")], b"\r\n\r\n", False),
    "HEAD": (ASK.replace(b"GET", b"HEAD"), [head(200, LENGTH), part(b"here")], b"\r\n\r\n", False),
    "HTTP/1.0": (ASK.replace(b"/1.1", b"/1.0"), [head(), part(b"he", more=True), part(b"re")], b"\r\n\r\nhere", True),
    "its own wish": (ASK, [head(200, LENGTH, (b"connection", b"close")), part(b"here")], b"\r\n\r\nhere", True),
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_each_answer_has_an_end_that_its_client_can_find(name: str) -> None:
    """A length, chunks, no body at all, or the end of the connection."""
    request, messages, end, is_last = FRAMINGS[name]
    found = await answers(Application(*messages), request, *([] if is_last else [request + LAST]))
    first = found.partition(b"\r\nhttp/1.1")[0] if is_last else found[: found.index(b"http/1.1", 1)]
    assert first.startswith(b"http/1.1 20") and first.endswith(end)
    assert (b"transfer-encoding" in first) == (b"0\r\n\r\n" in end)
    assert (b"\r\nconnection: close" in first) == is_last
    assert first.count(b"\r\ndate: ") == 1
    assert found.count(b"http/1.1 20") == (1 if is_last else 3)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [part(b"no head")],
        [head(200, (b"x", b"a\r\nset-cookie: b")), part(b"")],
        [head(200, (b"x\n", b"a")), part(b"")],
        [head(200, (b"x", b"a\0")), part(b"")],
        [head(200, LENGTH), part(b"too long")],
        [head(200, LENGTH), part(b"")],
    ],
)
async def test_an_answer_that_is_none_becomes_a_500(messages: list[dict[str, Any]]) -> None:
    """Nothing of a wrong answer leaves: no second header behind a line break, no body of another length."""
    found = await answers(Application(*messages), ASK)
    assert found.startswith(b"http/1.1 500") and b"application/problem+json" in found
    assert b"connection: close" in found and b"set-cookie" not in found


async def test_an_answer_that_stops_half_way_is_cut_off() -> None:
    """A client must not take a part of an answer for the whole."""
    found = await answers(Application(head(), part(b"half", more=True)), ASK + ASK)
    assert found.endswith(b"half\r\n") and found.count(b"http/1.1") == 1


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("split", [1, 7, 10_000])
async def test_requests_in_any_pieces_are_answered_in_order(framing: str, split: int) -> None:
    """Three requests in one packet, or in many, are three requests."""
    body = {
        "length": b"content-length: 3\r\n\r\nabc",
        "chunks": b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    }
    data = (b"POST /a HTTP/1.1\r\nHost: x\r\n" + body[framing]) * 3 + LAST
    app = Application(head(200, LENGTH), part(b"here"))
    found = await answers(app, *(data[at : at + split] for at in range(0, len(data), split)))
    assert app.bodies == [b"abc"] * 3 + [b""]
    assert [scope["path"] for scope in app.scopes] == ["/a"] * 3 + ["/"]
    assert found.count(b"http/1.1 200") == found.count(b"\r\n\r\nhere") == 4


async def test_a_request_sees_nothing_of_the_one_before_it() -> None:
    """A request that waited for the one before it starts in that one's task, but not with its context."""
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="")
    seen: list[str] = []

    async def marking(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        seen.append(mark.get())
        mark.set("marked")
        await send(head(200, LENGTH))
        await send(part(b"here"))

    await answers(cast("Application", marking), ASK + ASK + LAST)
    assert seen == ["", "", ""]


async def test_who_asks_whether_to_send_is_told_when_the_body_is_wanted() -> None:
    """`Expect: 100-continue`: an application that reads gets the body, one that does not has the connection closed."""
    ask = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    reads = await answers(Application(head(200, LENGTH), part(b"here")), ask, b"abc", pause_s=0.2)
    assert reads.startswith(b"http/1.1 100 continue\r\n\r\nhttp/1.1 200")
    refuses = await answers(Application(head(401, LENGTH), part(b"here"), reads=False), ask)
    assert refuses.startswith(b"http/1.1 401") and b"connection: close" in refuses


async def test_a_body_that_goes_wrong_ends_its_request() -> None:
    """The application stops waiting for the rest, and its client learns why."""
    bad = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nnonsense\r\n"
    for parts in ([bad], [bad[:-10], bad[-10:]]):
        app = Application(head(200, LENGTH), part(b"here"))
        found = await answers(app, *parts)
        assert found.startswith(b"http/1.1 400") and b"not valid http/1.1" in found
        assert not app.bodies


async def test_a_body_that_nobody_reads_is_not_collected() -> None:
    """The connection stops reading while an application leaves much of a body unread."""
    seen: list[int] = []
    go_on = asyncio.Event()

    async def slow(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await go_on.wait()
        more = True
        while more:
            message = await receive()
            seen.append(len(message["body"]))
            more = message["more_body"]
        await send(head(200, LENGTH))
        await send(part(b"here"))

    size = 8 << 20
    async with served(cast("Quart", slow)) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(b" " * size)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        go_on.set()
        async with asyncio.timeout(20):
            assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
        writer.close()
    assert sum(seen) == size
    assert max(seen) < 1 << 20


async def test_what_the_application_is_told_of_a_request() -> None:
    """The application gets the scope of ASGI, with the path decoded."""
    app = Application(head(200, LENGTH), part(b"here"))
    await answers(app, b"GET /a%20b?c=%20d HTTP/1.1\r\nHost: x\r\nX-Thing: 1 \r\nConnection: close\r\n\r\n")
    scope = app.scopes[0]
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20d")
    assert (scope["method"], scope["scheme"], scope["http_version"]) == ("GET", "http", "1.1")
    assert scope["headers"] == [(b"host", b"x"), (b"x-thing", b"1"), (b"connection", b"close")]
    assert scope["client"][0] == "127.0.0.1"


def test_the_date_is_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer has one; making it costs more than all the rest of a head."""
    made: list[int] = []
    real = exchange.http_date
    monkeypatch.setattr(exchange, "http_date", lambda now: made.append(now) or real(now))
    monkeypatch.setattr(exchange.time, "time", lambda: 1_000_000_000.5)
    assert exchange.date_line() == exchange.date_line() == b"date: Sun, 09 Sep 2001 01:46:40 GMT\r\n"
    assert made == [1_000_000_000]
