"""One connection of a client: Hypercorn's classes, changed where a balancer or a hostile client needs it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any, cast

import h11
import structlog
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import H11SendableEvent
from quart.utils import encode_headers

from quart_app.http.clients import Clients
from quart_app.http.problems import Problem
from quart_app.http.protection import HEADERS

log = structlog.get_logger(__name__)

#: How long a connection may stay open without a request, and how long it may take until the first one.
KEEP_ALIVE_S = 75
FIRST_REQUEST_S = 10
#: How long and how much a client may go on sending after an early answer before its connection is cut.
LINGER_S = 1.0
LINGER_BYTES = 32 << 20
#: How long a client may leave an answer unread.
UNREAD_S = 30.0
#: Connections beyond the bound that get an answer at the same time; further ones are cut without an answer.
TURNED_AWAY = 200
#: Why bytes are no request, by the status that h11 suggests.
UNREADABLE = {
    400: "the request is not valid HTTP/1.1",
    431: "the head of the request is longer than 32 KB",
    501: "Transfer-Encoding can only be chunked",
}


class Settings(Config):
    """Hypercorn's settings, and the connections that are open under them."""

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        self.clients = clients
        self.connections: set[Connection] = set()
        self.turned_away = 0

    def end(self) -> None:
        """Cancel every request that is not answered yet."""
        for connection in self.connections:
            connection.end()


class Connection(TCPServer):
    """A connection that closes as soon as its client has gone, but not before its client can read the answer.

    Four differences from Hypercorn 0.18:

    - Hypercorn keeps the descriptor for the whole keep-alive time after the client has closed, because it waits for the
      task that would end an idle connection.
    - Hypercorn closes at once after an answer to a request that is still being sent. The kernel then answers what
      arrives with a reset, and the client loses the answer.
    - Hypercorn makes two tasks per request to notice idleness. Here one task does so for the whole connection.
    - Hypercorn ends connections after the grace only when asyncio says that the server is closed. From Python 3.12 on
      that is when no connection is left (https://github.com/pgjones/hypercorn/issues/308; uvloop says so at once).
    """

    config: Settings
    _task: asyncio.Task[None]
    _ended = False
    _client_gone = False
    _lingering = False
    #: since when no request is in progress, by the loop's clock
    _idle_since = math.inf

    async def run(self) -> None:
        clients = self.config.clients
        peer = _peer(self.writer)
        if not clients.connections.take(peer, 1, is_proxy=clients.proxies.trusts(peer)):
            await self._turn_away(peer)
            return
        try:
            await self._serve()
        finally:
            clients.connections.give_back(peer, 1)

    async def _serve(self) -> None:
        self._idle_since = self.loop.time() - max(0, self.config.keep_alive_timeout - FIRST_REQUEST_S)
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        self.config.connections.add(self)
        try:
            await super().run()
        except asyncio.CancelledError:
            if not self._ended or self._task.uncancel():
                raise
        finally:
            self.config.connections.discard(self)

    async def _turn_away(self, peer: str) -> None:
        """Answer the first request of a connection beyond the bound with 503.

        The answer waits for the request: a balancer takes one that comes earlier for a broken connection.
        """
        if self.config.turned_away >= TURNED_AWAY:
            self.writer.transport.abort()
            return
        if not self.config.turned_away:
            log.warning("too many connections", source=peer, connections=self.config.clients.connections.total)
        self.config.turned_away += 1
        try:
            async with asyncio.timeout(LINGER_S):
                await self.reader.read(MAX_RECV)
                self.writer.write(FULL)
                self.writer.write_eof()
                await self._discard()
        except (OSError, TimeoutError):
            pass
        finally:
            self.config.turned_away -= 1
            self.writer.close()

    def end(self) -> None:
        """Cancel the request in progress; its client is answered with 503."""
        self._ended = True
        self._task.cancel()

    async def _read_data(self) -> None:
        """Hand what the client sends to the protocol until the client stops; while lingering, discard it."""
        with contextlib.suppress(OSError):
            while not self.reader.at_eof() and not self._lingering:
                await self.protocol.handle(RawData(await self.reader.read(MAX_RECV)))
            await self._discard()
        await self.protocol.handle(Closed())
        self._client_gone = True
        await self.idle_task.stop()

    async def _discard(self) -> None:
        """Read until the client stops, or has sent too much."""
        left = LINGER_BYTES
        while left > 0 and (data := await self.reader.read(MAX_RECV)):
            left -= len(data)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._idle_since = self.loop.time() if event.idle else math.inf
        elif isinstance(event, Closed) and not self._client_gone and self._is_still_sent_to():
            self._linger()
        elif isinstance(event, RawData):
            await self._send(event.data)
        else:
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Write, and cut the connection if its client does not read."""
        async with self.send_lock:
            try:
                self.writer.write(data)
                if not self.writer.transport.get_write_buffer_size():
                    await self.writer.drain()
                    return
                async with asyncio.timeout(UNREAD_S):
                    await self.writer.drain()
            except TimeoutError:
                self.writer.transport.abort()
            except (ConnectionError, RuntimeError):
                await self.protocol.handle(Closed())

    async def _idle_timeout(self) -> None:
        """Close the connection once it has been idle for long, or the server stops.

        A connection with a request in progress is closed after its answer.
        """
        while not self.context.terminated.is_set():
            now = self.loop.time()
            left_s = min(self._idle_since, now) + self.config.keep_alive_timeout - now
            if left_s <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self.context.terminated.wait()
        if self._idle_since < math.inf:
            await asyncio.shield(self._initiate_server_close())

    def _is_still_sent_to(self) -> bool:
        connection = getattr(self.protocol.protocol, "connection", None)
        return isinstance(connection, h11.Connection) and connection.their_state in {h11.SEND_BODY, h11.ERROR}

    def _linger(self) -> None:
        """Half-close the connection and discard input (lingering close)."""
        if not self._lingering:
            self._lingering = True
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.write_eof()
            self.loop.call_later(LINGER_S, self.writer.close)


def _peer(writer: asyncio.StreamWriter) -> str:
    """Return the address that a connection comes from; "" for a local socket or a client that has gone."""
    name = writer.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def connection_for(app: Any, loop: Any, config: Config, *rest: Any) -> TCPServer:
    """Return the connection class for a configuration; other servers of this process keep Hypercorn's own."""
    return (Connection if isinstance(config, Settings) else TCPServer)(app, loop, config, *rest)


class Http1(H11Protocol):
    """HTTP/1.1 and nothing else; an offer of another protocol is answered in this one, as RFC 9110 allows.

    Hypercorn would switch to HTTP/2 for an unencrypted `Upgrade: h2c`, even if the client asks to close the connection
    after the answer, and would keep a connection open after it has refused a WebSocket.
    """

    #: the head of an answer whose body is about to follow
    _head = b""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send the head of an answer together with its body if the length of the body is known.

        The client wakes up once, and a process that dies in between does not leave half an answer with a balancer.
        """
        if isinstance(event, h11.Response) and self.connection.their_state is h11.SEND_BODY:
            event = _closing(event)
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers):
            self._head = data
        elif data or self._head:
            head, self._head = self._head, b""
            await self.send(RawData(head + data))

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Hand the request to the application, or refuse one with two headers that disagree about its length.

        RFC 9112 (6.3) allows to process a request with both headers, but the connection must be closed afterwards in
        any case, and a proxy that reads the other header than we do lets a second request hide in the first.
        """
        names = {name for name, _ in request.headers}
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
            problem = Problem(400, "Transfer-Encoding cannot stand beside Content-Length or in HTTP/1.0")
            await self._refuse(problem, request.method)
            return
        if b"upgrade" in names:
            headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _send_error_response(self, status_code: int) -> None:
        """Answer bytes that are no HTTP/1.1 request with a problem document; Hypercorn's answer has no body."""
        await self._refuse(Problem(status_code, UNREADABLE.get(status_code, UNREADABLE[400])))

    async def _refuse(self, problem: Problem, method: bytes = b"") -> None:
        """Answer without asking the application, and close the connection."""
        headers = [*last_headers(problem), *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=problem.status, headers=headers))
        if method != b"HEAD":
            await self._send_h11_event(h11.Data(data=problem.document()))
        await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())


def _closing(response: h11.Response) -> h11.Response:
    """Return the response with `Connection: close`.

    An answer that leaves before its request has been read completely must say that the connection ends with it.
    Otherwise a balancer puts the connection back into its pool, and the next request on it fails.
    """
    headers = [(name, value) for name, value in response.headers if name != b"connection"]
    return h11.Response(status_code=response.status_code, headers=[*headers, (b"connection", b"close")])


def last_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Return the headers of a problem that is answered without the application, as the last on its connection."""
    headers = problem.response().headers
    headers.update({**HEADERS, "Connection": "close"})
    return encode_headers(headers)


def _full() -> bytes:
    problem = Problem(503, "this replica has too many open connections; retry after 1 s", retry_after=1)
    lines = [b"HTTP/1.1 503 Service Unavailable", *(b"%b: %b" % header for header in last_headers(problem))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + problem.document()


#: The answer to a connection beyond the bound.
FULL = _full()
