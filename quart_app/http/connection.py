"""One connection of a client: Hypercorn accepts it, and llhttp reads its requests."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable
from typing import Any, cast

import structlog
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.config import Config
from hypercorn.utils import parse_socket_addr

from quart_app.http.clients import Clients
from quart_app.http.exchange import MAX_UNREAD, Exchange, last_headers
from quart_app.http.parser import Head, Parser, Unreadable
from quart_app.http.problems import Problem

log = structlog.get_logger(__name__)

#: Seconds without a request after which a connection is closed (`server.configuration` gives this number to Hypercorn's
#: settings). A new connection has only FIRST_REQUEST_S until its first request.
KEEP_ALIVE_S = 75
FIRST_REQUEST_S = 10
#: If an answer comes before the end of its request, the client may go on sending for so many seconds, or so many bytes.
#: Then its connection is cut.
LINGER_S = 1.0
LINGER_BYTES = 32 << 20
#: How long a client may leave an answer unread before its connection is cut.
UNREAD_S = 30.0
#: Most connections beyond MAX_CONNECTIONS that may wait for their 503 at the same time, each for up to LINGER_S.
#: Others are cut without it.
MOST_TURNED_AWAY = 200
#: Most pieces (see `Parser.feed`) of one connection's input that are parsed in a row. Then the event loop runs other
#: work before the next piece.
MOST_PIECES_IN_A_ROW = 1000
#: More bytes than asyncio's stream reader can hold: so one read empties its buffer before we take the connection over.
MORE_THAN_BUFFERED = 1 << 30


class Settings(Config):
    """Hypercorn's settings of one server, and the server's open connections.

    Hypercorn hands this object to each connection, so it is the one place that all connections of a server share.
    """

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        #: counts the connections of each source
        self.clients = clients
        #: the connections that are being served
        self.open_connections: set[Connection] = set()
        #: how many connections wait for their 503 now
        self.turned_away = 0
        #: set by `stop`: each answer is then the last one of its connection
        self.is_stopping = False

    def stop(self) -> None:
        """Close each connection once its request is answered, and idle connections at once."""
        self.is_stopping = True
        for connection in list(self.open_connections):
            connection.close_when_idle()

    def cancel_requests(self) -> None:
        """Cancel every request that is not answered yet."""
        for connection in list(self.open_connections):
            connection.cancel_request()


class Connection(asyncio.Protocol):
    """A connection of a client. It replaces Hypercorn's class, which has a task and two timers for each request.

    waiting for a head --head--> request in progress --answer--> waiting, or closed
                                                     --answer before the whole body--> lingering: input is discarded

    A request that comes while another one is in progress waits in `_input` and is parsed later. A client that stops
    sending for good (EOF) counts as gone, and its request is cancelled.
    """

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop, config: Settings, state: dict[str, Any]) -> None:
        #: The host and port of the client, and our own. `Exchange` copies these four into the ASGI scope of a request.
        self.client: Any = None
        self.server: Any = None
        self.scheme = "http"
        #: the state that Hypercorn shares between the application's lifespan and its requests
        self.state = state
        self._app = app
        self._loop = loop
        self.config = config
        self._parser = Parser(self)
        #: the context variables with which each request begins
        self._context = contextvars.copy_context()
        self._transport: asyncio.Transport
        #: the request in progress
        self._exchange: Exchange | None = None
        #: bytes that have come and are not parsed yet
        self._input = b""
        self._reading_is_paused = self._is_parsing = False
        #: whether all further input is discarded
        self._is_discarding = False
        self._discarded_bytes = 0
        self._request_count = 0
        #: When the last request ended, on the loop's clock. A new connection begins with only FIRST_REQUEST_S left.
        self._idle_since = loop.time() - max(0, config.keep_alive_timeout - FIRST_REQUEST_S)
        #: the next call of `_check_idle`
        self._timer: asyncio.TimerHandle | None = None
        #: set once the full write buffer has room again; None while the buffer is not full
        self._buffer_has_room: asyncio.Event | None = None
        #: done once the connection is closed
        self._closed: asyncio.Future[None] = loop.create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the connection over from asyncio's streams, and return when it is closed."""
        self._transport = cast("asyncio.Transport", writer.transport)
        socket = writer.get_extra_info("socket")
        self.client = parse_socket_addr(socket.family, socket.getpeername())
        self.server = parse_socket_addr(socket.family, socket.getsockname())
        if writer.get_extra_info("ssl_object") is not None:
            self.scheme = "https"
        self.config.open_connections.add(self)
        try:
            async with asyncio.timeout(self._idle_left_s()):
                first_bytes = await reader.read(MORE_THAN_BUFFERED)
            if first_bytes and not self._transport.is_closing():
                self._transport.set_protocol(self)
                self._check_idle()
                self.data_received(first_bytes)
                if reader.at_eof():  # asyncio's own protocol has read the end already
                    self.eof_received()
                await self._closed
        except asyncio.CancelledError:
            self.cancel_request()
            raise
        finally:
            if self._exchange is not None:
                await self._exchange.wait_until_ended()
            self.config.open_connections.discard(self)
            self._close_transport()
            self._clean_up()

    # asyncio calls these methods.

    def data_received(self, data: bytes) -> None:
        if self._is_discarding:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self._transport.abort()
            return
        self._input = self._input + data if self._input else data
        self._parse()

    def eof_received(self) -> bool:
        """Treat a client that sends nothing more as gone."""
        if self._exchange is not None:
            self._exchange.client_went()
        self._close_transport()
        return False  # lets asyncio close the transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.client_went()
        self._clean_up()

    def pause_writing(self) -> None:
        """Note that the write buffer is full, so that `drain` waits."""
        self._buffer_has_room = asyncio.Event()

    def resume_writing(self) -> None:
        """Note that the write buffer has room again, and wake `drain`."""
        if self._buffer_has_room is not None:
            self._buffer_has_room.set()
            self._buffer_has_room = None

    # The parser calls these methods.

    def head_came(self, head: Head) -> None:
        self._request_count += 1
        self._exchange = Exchange(self, head)
        # The parser may run in the task of the last request, whose context variables this request must not see.
        self._exchange.start(self._app, self._context.copy())

    def body_came(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.body_came(data)

    def request_ended(self) -> None:
        if self._exchange is not None:
            self._exchange.body_ended()
            self._is_discarding = not self._exchange.head.keep_alive  # then it is the client's last request

    # The request in progress calls these methods.

    def is_last(self) -> bool:
        return self.config.is_stopping or self._request_count > self.config.keep_alive_max_requests

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait while the write buffer is full. Cut the connection if its client reads too little within UNREAD_S."""
        if self._buffer_has_room is None:
            return
        try:
            async with asyncio.timeout(UNREAD_S):
                await self._buffer_has_room.wait()
        except TimeoutError:
            self._transport.abort()

    def body_was_taken(self) -> None:
        self._parse()

    def answered(self, exchange: Exchange, *, keep: bool) -> None:
        self._exchange = None
        if not keep or self.config.is_stopping:
            self._close(linger=not exchange.body_is_complete)
            return
        self._idle_since = self._loop.time()
        if self._input:
            self._parse()

    # These methods parse the input, and end the connection.

    def close_when_idle(self) -> None:
        """Close the connection now if no request is in progress; otherwise `answered` closes it."""
        if self._exchange is None:
            self._close(linger=False)

    def cancel_request(self) -> None:
        """Cancel the request in progress, if there is one. Its client is answered with 503."""
        if self._exchange is not None:
            self._exchange.cancel()

    def _must_wait(self) -> bool:
        """Return whether parsing must wait: for an answer, or until the application has read the body so far."""
        exchange = self._exchange
        return exchange is not None and (exchange.body_is_complete or exchange.unread >= MAX_UNREAD)

    def _parse(self) -> None:
        """Parse as much of the input as may be parsed now. Read from the socket only while little input is left."""
        # `feed` and `_refuse` call nothing that parses. If that ever changes, no piece may be parsed twice.
        if self._is_parsing:
            return
        self._is_parsing = True
        data, parsed = self._input, 0
        try:
            for _ in range(MOST_PIECES_IN_A_ROW):
                if parsed == len(data) or self._is_discarding or self._must_wait():
                    break
                parsed = self._parser.feed(data, parsed)
            else:
                self._loop.call_soon(self._parse)
        except Unreadable as error:
            self._refuse(error)
        finally:
            self._is_parsing = False
        self._input = b"" if self._is_discarding else data[parsed:]
        self._set_reading(len(self._input) < MAX_UNREAD)

    def _set_reading(self, should_read: bool) -> None:
        """Resume or pause reading from the socket, unless it is in this state already."""
        if should_read == self._reading_is_paused and not self._transport.is_closing():
            self._reading_is_paused = not should_read
            (self._transport.resume_reading if should_read else self._transport.pause_reading)()

    def _refuse(self, error: Unreadable) -> None:
        """Answer that what has come is no valid request, or no valid body of the request in progress."""
        self._is_discarding = True
        if self._exchange is None:
            # No head was read, so this one is made up. The method matters, because an answer to HEAD has no body.
            self._exchange = Exchange(self, Head("HEAD" if self._parser.method == b"HEAD" else "GET", b"", "1.1", []))
        self._exchange.refuse(Problem(error.status, error.detail))

    def _close(self, *, linger: bool) -> None:
        """Close the connection once everything is written.

        With `linger`, discard for LINGER_S what the client still sends, so that it can read its answer before the end.
        """
        self._is_discarding = True
        if linger and self._transport.can_write_eof():
            self._transport.write_eof()
            self._set_reading(True)
            self._loop.call_later(LINGER_S, self._close_transport)
        else:
            self._close_transport()

    def _close_transport(self) -> None:
        """Close the transport once its write buffer is empty, and after UNREAD_S at the latest."""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(UNREAD_S, self._transport.abort)

    def _idle_left_s(self) -> float:
        """Return for how many seconds more the connection may be idle."""
        return self._idle_since + self.config.keep_alive_timeout - self._loop.time()

    def _check_idle(self) -> None:
        """Close the connection if it has been idle for too long, or else check again later.

        So one timer serves all requests of the connection.
        """
        busy = self._exchange is not None
        left_s = self.config.keep_alive_timeout if busy else self._idle_left_s()
        if left_s <= 0:
            self._close(linger=False)
        else:
            self._timer = self._loop.call_later(left_s, self._check_idle)

    def _clean_up(self) -> None:
        """Stop the idle timer, and wake `drain` and `serve` if they wait."""
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        if not self._closed.done():
            self._closed.set_result(None)


async def _serve_if_room(connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a connection if its source and the server may have one more, or else turn it away."""
    config = connection.config
    clients, peer = config.clients, _peer(writer)
    if not clients.connections.occupy(peer, 1, is_proxy=clients.proxies.trusts(peer)):
        await _turn_away(config, peer, reader, writer)
        return
    try:
        await connection.serve(reader, writer)
    except (OSError, TimeoutError):
        pass  # the client has gone, or has sent no request in time
    finally:
        clients.connections.vacate(peer, 1)


async def _turn_away(config: Settings, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the first request of a connection beyond the bound with 503. This takes LINGER_S at most.

    The answer is not sent before the client has sent something: a balancer that gets an answer before it has sent a
    request takes the connection for broken.
    """
    if config.turned_away >= MOST_TURNED_AWAY:
        writer.transport.abort()
        return
    if not config.turned_away:
        log.warning("too many connections", source=peer, connections=config.clients.connections.total)
    config.turned_away += 1
    try:
        async with asyncio.timeout(LINGER_S):
            await reader.read(MAX_RECV)
            writer.write(FULL_ANSWER)
            writer.write_eof()
            left_bytes = LINGER_BYTES
            while left_bytes > 0 and (data := await reader.read(MAX_RECV)):
                left_bytes -= len(data)
    except (OSError, TimeoutError):
        pass
    finally:
        config.turned_away -= 1
        writer.close()


def _peer(writer: asyncio.StreamWriter) -> str:
    """Return the address that a connection comes from; "" for a local socket or a client that has gone."""
    name = writer.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def connection_for(
    app: Any,
    loop: asyncio.AbstractEventLoop,
    config: Config,
    context: Any,
    state: Any,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> Awaitable[None]:
    """Return the awaitable that serves one connection, for Hypercorn.

    `server.run` puts this function into Hypercorn's module, so it is called for every Hypercorn server of this process.
    A server that does not have our `Settings`, such as a provider that a test runs, gets Hypercorn's own class.
    """
    if isinstance(config, Settings):
        return _serve_if_room(Connection(app, loop, config, state), reader, writer)
    return TCPServer(app, loop, config, context, state, reader, writer)


def _full_answer() -> bytes:
    problem = Problem(503, "this replica has too many open connections; retry after 1 s", retry_after=1)
    lines = [b"HTTP/1.1 503 Service Unavailable", *(b"%b: %b" % header for header in last_headers(problem))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + problem.document()


#: The answer to a connection beyond the bound.
FULL_ANSWER = _full_answer()
