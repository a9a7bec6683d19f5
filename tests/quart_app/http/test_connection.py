"""One connection: answers, early answers, bounds, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from quart import Quart, request
from structlog.testing import capture_logs

from quart_app.http import connection, server
from quart_app.http.clients import ClientUsage
from tests.support.serving import raw, served, settings


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect what is written to connections, piece by piece."""
    pieces: list[bytes] = []
    really = connection.Connection.write

    def write(one: connection.Connection, data: bytes) -> None:
        pieces.append(data)
        really(one, data)

    monkeypatch.setattr(connection.Connection, "write", write)
    return pieces


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_leaves_in_one_piece(method: str, writes: list[bytes]) -> None:
    """If the process died between head and body, a balancer would already have passed half an answer on."""
    app = Quart("test")
    app.get("/")(lambda: "here")
    async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        for _ in range(2):
            answer = await client.request(method, "/")
            assert (answer.status_code, answer.headers["content-length"]) == (200, "4")
    answers = [piece for piece in writes if piece.startswith(b"HTTP/1.1")]
    assert len(answers) == 2
    assert all(piece.endswith(b"\r\n\r\nhere" if method == "GET" else b"\r\n\r\n") for piece in answers)
    assert not [piece for piece in writes if piece == b"here"]


async def test_the_head_of_a_stream_does_not_wait_for_it() -> None:
    """An answer without a length sends its head at once, and each part as soon as it exists."""
    app = Quart("test")
    go_on = asyncio.Event()

    @app.get("/")
    async def slowly() -> tuple[AsyncIterator[bytes], int]:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"first", b"second"):
                await go_on.wait()
                go_on.clear()
                yield part

        return parts(), 200

    async with served(app) as address, httpx.AsyncClient() as client, asyncio.timeout(5):
        async with client.stream("GET", f"http://{address}/") as answer:
            parts = answer.aiter_raw()
            for part in (b"first", b"second"):
                go_on.set()
                assert await anext(parts) == part


async def test_an_idle_connection_is_closed_and_a_slow_request_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idleness counts from the end of the latest request."""
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    app = Quart("test")

    @app.get("/")
    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "here"

    async with served(app) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(5):
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.1)
            begun = time.monotonic()
            assert await reader.read() == b""
        assert time.monotonic() - begun < 1
        writer.close()


H2C = "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n"


WEBSOCKET = "Upgrade: websocket\r\nConnection: Upgrade\r\n"


HANDSHAKE = f"{WEBSOCKET}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"


@pytest.mark.parametrize("head", [H2C, WEBSOCKET, HANDSHAKE], ids=["h2c", "websocket", "websocket handshake"])
async def test_who_asks_for_another_protocol_is_answered_in_this_one(head: str) -> None:
    """The server ignores the offer of an upgrade, and closes the connection when the client asks for that."""
    app = Quart("test")

    @app.get("/")
    async def here() -> str:
        return "here"

    async with served(app) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        writer.write(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n".encode())
        async with asyncio.timeout(5):
            answers = await reader.read()
        writer.close()
    assert answers.count(b"HTTP/1.1 200") == answers.count(b"\r\n\r\nhere") == 2


async def test_http_2_is_not_spoken() -> None:
    """The preface of HTTP/2 is a bad request in HTTP/1.1; the server answers it and closes."""
    async with served(Quart("test")) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        async with asyncio.timeout(5):
            answers = await reader.read()
        writer.close()
    assert answers.startswith(b"HTTP/1.1 400") and answers.count(b"HTTP/1.1 4") == 1


@pytest.fixture
def refusing() -> Quart:
    """An application that takes no more than a thousand bytes."""
    app = Quart("refusing")
    app.config["MAX_CONTENT_LENGTH"] = 1000

    @app.post("/")
    async def take() -> str:
        await request.get_data()
        return ""

    return app


async def test_who_is_refused_while_it_still_sends_can_read_why(refusing: Quart) -> None:
    """Input after a refusal is read and discarded; a reset would make the client lose the refusal."""

    def send_all_and_read(host: str, port: int) -> bytes:
        with socket.create_connection((host, port), timeout=5) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
            for _ in range(9):
                client.sendall(b" " * 1_000_000)
            return client.recv(100)

    async with served(refusing) as address:
        host, _, port = address.rpartition(":")
        for _ in range(5):
            assert (await asyncio.to_thread(send_all_and_read, host, int(port))).startswith(b"HTTP/1.1 413")


async def test_who_never_stops_sending_is_left_in_the_end(refusing: Quart) -> None:
    """Lingering ends after a bounded time."""
    async with served(refusing) as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < begun + 10 * connection.LINGER_S:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        assert connection.LINGER_S / 2 < time.monotonic() - begun < 5 * connection.LINGER_S
        writer.transport.abort()


#: (how the body is announced, what of it has arrived before the answer)
UNREAD = {
    "a length": (b"Content-Length: 100\r\n", b""),
    "half of a length": (b"Content-Length: 100\r\n", b" " * 50),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"1\r\n \r\n"),
    "an expectation": (b"Content-Length: 100\r\nExpect: 100-continue\r\n", b""),
    "too long a length": (b"Content-Length: 9000000\r\n", b""),
}


@pytest.mark.parametrize("kind", UNREAD)
async def test_an_answer_before_the_whole_body_says_that_the_connection_closes(refusing: Quart, kind: str) -> None:
    """A balancer reuses a connection unless it is told not to, and the next request on it would be lost."""
    announced, arrived = UNREAD[kind]
    refusing.post("/early")(lambda: ("no", 401))
    async with served(refusing) as address:
        answer = await raw(address, b"POST /early HTTP/1.1\r\nHost: x\r\n" + announced + b"\r\n" + arrived)
    head = answer[answer.index(b"http/1.1 401") :].partition(b"\r\n\r\n")[0]
    assert head.count(b"\r\nconnection: close") == 1


async def test_an_answer_after_the_whole_body_keeps_the_connection(refusing: Quart) -> None:
    """Only an early answer closes the connection, even if the route never reads the body."""
    refusing.post("/early")(lambda: ("no", 401))
    request = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n[1]"
    async with served(refusing) as address:
        answers = await raw(address, request, request.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    assert answers.count(b"http/1.1 401") == 2
    assert answers.count(b"connection: close") == 1


@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD"])
@pytest.mark.parametrize(
    ("version", "headers"),
    [
        (b"1.1", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        (b"1.1", b"Transfer-Encoding: chunked\r\nContent-Length: 0"),
        (b"1.1", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\nExpect: 100-continue"),
        (b"1.0", b"Transfer-Encoding: chunked"),
    ],
    ids=["length first", "chunks first", "expectation", "HTTP/1.0"],
)
async def test_two_ways_to_tell_the_end_of_a_body_are_refused(
    refusing: Quart, method: bytes, version: bytes, headers: bytes
) -> None:
    """RFC 9112, 6.3: the connection closes, so a request hidden in the body of another is never answered."""
    hidden = b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"%b / HTTP/%b\r\nHost: x\r\n%b\r\n\r\n" % (method, version, headers)
    async with served(refusing) as address:
        answers = await raw(address, head + hidden)
    assert answers.startswith(b"http/1.1 400")
    assert answers.count(b"http/1.1") == 1
    assert b"connection: close" in answers
    assert (b"application/problem+json" in answers) and (b"transfer-encoding is not allowed" in answers) == (
        method != b"HEAD"
    )


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (b"nonsense\r\n\r\n", 400, b"not valid http/1.1"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"not valid http/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000, 431, b"longer than 32 kb"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, b"can only be chunked"),
    ],
)
async def test_bytes_that_are_no_request_are_answered_with_a_problem(
    refusing: Quart, sent: bytes, status: int, says: bytes
) -> None:
    """The application does not see the request, but the answer and the line in the log have the form of its own."""
    with capture_logs() as logged:
        async with served(refusing) as address:
            answer = await raw(address, sent)
    (line,) = [line for line in logged if line["event"] == "request"]
    assert (line["status"], line["route"], says in line["detail"].lower().encode()) == (status, "none", True)
    assert answer.startswith(b"http/1.1 %d" % status)
    assert b"application/problem+json" in answer and says in answer


async def test_input_after_an_early_answer_is_discarded_and_not_collected(refusing: Quart) -> None:
    """Tiny chunks would pile up in the parser, which takes one of them at a time."""
    chunks = b"1\r\n \r\n" * 10_000
    async with served(refusing) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 4 * connection.LINGER_BYTES:
                writer.write(chunks)
                await writer.drain()
                sent += len(chunks)
        writer.transport.abort()
    assert sent < 2 * connection.LINGER_BYTES


ASK = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "bounds",
    [{"max_connections": 2}, {"max_connections_per_source": 2}, {"max_connections": 2, "trusted_proxies": "::1"}],
)
async def test_connections_beyond_the_bound_are_answered_with_503(bounds: dict[str, object]) -> None:
    """The answer says when to retry; once other connections have closed there is room."""
    app = Quart("test")
    app.get("/")(lambda: "here")
    clients = ClientUsage(settings(**bounds))
    async with served(app, clients) as address:
        host, _, port = address.rpartition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        async with asyncio.timeout(5):
            while clients.connections.total < 2:
                await asyncio.sleep(0.01)
        refused = await raw(address, ASK)
        assert refused.startswith(b"http/1.1 503")
        assert b"retry-after: 1" in refused and b"connection: close" in refused and b"nosniff" in refused
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(5):
            while clients.connections.total:
                await asyncio.sleep(0.01)
        assert (await raw(address, ASK)).startswith(b"http/1.1 200")


async def test_a_trusted_proxy_may_have_more_connections_than_one_client() -> None:
    """A proxy asks for many clients; only the bound of the whole port holds for it."""
    app = Quart("test")
    app.get("/")(lambda: "here")
    clients = ClientUsage(settings(max_connections=3, max_connections_per_source=1, trusted_proxies="127.0.0.0/8"))
    async with served(app, clients) as address:
        host, _, port = address.rpartition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        assert (await raw(address, ASK)).startswith(b"http/1.1 200")
        for _, writer in held:
            writer.close()


async def test_a_connection_that_never_asks_is_closed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is for a request: the first one comes soon, even if its head arrives byte by byte."""
    monkeypatch.setattr(connection, "FIRST_REQUEST_S", 0.5)
    async with served(Quart("test")) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                for letter in b"GET / HTTP/1.1" * 10:
                    writer.write(bytes([letter]))
                    await writer.drain()
                    await asyncio.sleep(0.05)
                assert await reader.read() == b""
        assert 0.4 < time.monotonic() - begun < 4
        writer.close()


async def test_a_client_that_does_not_read_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer waits in memory until it is read."""
    monkeypatch.setattr(connection, "UNREAD_S", 0.3)
    app = Quart("test")

    @app.get("/")
    async def long() -> AsyncIterator[bytes]:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield b" " * (1 << 20)

        return parts()

    clients = ClientUsage(settings())
    async with served(app, clients) as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            while not clients.connections.total:
                await asyncio.sleep(0.01)
            while clients.connections.total:
                await asyncio.sleep(0.05)
        writer.transport.abort()


@pytest.mark.parametrize("early", [True, False])
async def test_a_last_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """Its connection would otherwise stay until the client closes it, however little is left of the answer."""
    monkeypatch.setattr(connection, "UNREAD_S", 0.3)
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    monkeypatch.setattr(connection.Connection, "wait_for_room", lambda self: asyncio.sleep(0))
    app = Quart("test")
    app.post("/")(lambda: b" " * (8 << 20))
    clients = ClientUsage(settings())
    async with served(app, clients) as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % early)
        async with asyncio.timeout(10):
            while not clients.connections.total:
                await asyncio.sleep(0.01)
            while clients.connections.total:
                await asyncio.sleep(0.05)
        writer.transport.abort()
