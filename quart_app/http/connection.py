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

from quart_app.http.clients import ClientUsage
from quart_app.http.exchange import MAX_UNTAKEN_BYTES, Exchange, closing_headers
from quart_app.http.parser import Head, Parser, Unreadable
from quart_app.http.problems import Problem

log = structlog.get_logger(__name__)

#: Seconds without a request after which a connection is closed (`server.configuration` gives this number to Hypercorn's
#: settings). After a longer time, a client can still reuse its connection; after a shorter time, an idle connection
#: frees its place sooner. A new connection has only FIRST_REQUEST_S until its first request, because its client should
#: want to send one now. So a connection that only takes a place is closed soon.
KEEP_ALIVE_S = 75
FIRST_REQUEST_S = 10
#: If an answer comes before the end of its request, the client may go on sending: for LINGER_S, or LINGER_BYTES. Then
#: its connection is cut. With less time or fewer bytes, more clients would be cut before they read their answer.
LINGER_S = 1.0
LINGER_BYTES = 32 << 20
#: How long a client may leave an answer unread before its connection is cut. A longer time suits slower clients, and
#: keeps the answers of stalled clients in memory for longer.
UNREAD_S = 30.0
#: The most connections beyond MAX_CONNECTIONS or MAX_CONNECTIONS_PER_SOURCE that may wait for their 503 at the same
#: time, each for up to LINGER_S. Others are cut without it, because each waiting one costs a descriptor.
MOST_TURNING_AWAY = 200
#: The most pieces (see `Parser.feed`) of one connection's input that are parsed in a row. With a larger number, other
#: work waits longer for the event loop; with a smaller one, a long body needs more turns of it. A body in chunks can
#: consist of very small pieces: each blank line in it ends a piece.
MOST_PIECES_IN_A_ROW = 1000
#: More bytes than asyncio's stream reader can hold: one read empties its buffer before `Connection` takes its place.
MORE_THAN_BUFFERED = 1 << 30


class ServerConfig(Config):
    """Hypercorn's settings of one server, and the server's open connections.

    Hypercorn hands this object to each connection, so it is the one place that all connections of a server share.
    """

    def __init__(self, client_usage: ClientUsage) -> None:
        super().__init__()
        self.client_usage = client_usage
        self.open_connections: set[Connection] = set()
        #: how many connections beyond the bound wait for their 503 now
        self.turning_away_count = 0
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

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop, config: ServerConfig, state: dict[str, Any]) -> None:
        #: The host and port of the client, and our own. `Exchange` copies these two, `scheme` and `state` into the ASGI
        #: scope of a request.
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
        self._is_discarding = False  # whether further input is thrown away, because no further request is read
        self._discarded_byte_count = 0
        self._request_count = 0
        #: When the previous request ended, on the loop's clock. A new connection begins with only FIRST_REQUEST_S left.
        self._idle_since = loop.time() - max(0, config.keep_alive_timeout - FIRST_REQUEST_S)
        #: the next call of `_check_idle`
        self._idle_timer: asyncio.TimerHandle | None = None
        #: is set once the full write buffer has room again; None while the buffer is not full
        self._room_event: asyncio.Event | None = None
        #: done once the connection is closed
        self._closed_future: asyncio.Future[None] = loop.create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the connection over from asyncio's streams, and return when it is closed."""
        self._transport = cast("asyncio.Transport", writer.transport)
        client_socket = writer.get_extra_info("socket")
        self.client = parse_socket_addr(client_socket.family, client_socket.getpeername())
        self.server = parse_socket_addr(client_socket.family, client_socket.getsockname())
        if writer.get_extra_info("ssl_object") is not None:
            self.scheme = "https"
        self.config.open_connections.add(self)
        try:
            async with asyncio.timeout(self._idle_left_s()):
                first_bytes = await reader.read(MORE_THAN_BUFFERED)
            if first_bytes and not self._transport.is_closing():  # the client has not gone in the meantime
                self._transport.set_protocol(self)
                self._check_idle()
                self.data_received(first_bytes)
                if reader.at_eof():  # asyncio's own protocol has read the end already
                    self.eof_received()
                await self._closed_future
        except asyncio.CancelledError:
            self.cancel_request()
            raise
        finally:
            if self._exchange is not None:  # the application is cancelled, and may still clean up
                await self._exchange.wait_until_ended()
            self.config.open_connections.discard(self)
            self._close_transport()
            self._clean_up()

    # asyncio calls these methods.

    def data_received(self, data: bytes) -> None:
        if self._is_discarding:
            self._discarded_byte_count += len(data)
            if self._discarded_byte_count > LINGER_BYTES:
                self._transport.abort()
            return
        self._input = self._input + data if self._input else data
        self._parse()

    def eof_received(self) -> bool:
        if self._exchange is not None:
            self._exchange.client_went()
        self._close_transport()
        return False  # lets asyncio close the transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.client_went()
        self._clean_up()

    def pause_writing(self) -> None:
        """Note that the write buffer is full, so that `wait_for_room` waits."""
        self._room_event = asyncio.Event()

    def resume_writing(self) -> None:
        """Note that the write buffer has room again, and wake `wait_for_room`."""
        if self._room_event is not None:
            self._room_event.set()
            self._room_event = None

    # The parser calls these methods. `_exchange` is set until its body has ended; the checks are for the type checker.

    def head_came(self, head: Head) -> None:
        self._request_count += 1
        self._exchange = Exchange(self, head)
        # The parser may run in the task of the previous request, whose context variables this request must not see.
        self._exchange.start(self._app, self._context.copy())

    def body_part_came(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.body_part_came(data)

    def whole_request_came(self) -> None:
        if self._exchange is not None:
            self._exchange.body_ended()
            self._is_discarding = not self._exchange.head.keep_alive  # after the last request, input is discarded

    # The request in progress calls these methods.

    def answer_is_last(self) -> bool:
        """Return whether the server stops, or the connection has had more requests than Hypercorn's setting says."""
        return self.config.is_stopping or self._request_count > self.config.keep_alive_max_requests

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def wait_for_room(self) -> None:
        """Wait while the write buffer is full. Cut the connection if its client reads too little within UNREAD_S."""
        if self._room_event is None:
            return
        try:
            async with asyncio.timeout(UNREAD_S):
                await self._room_event.wait()
        except TimeoutError:
            self._transport.abort()

    def parse_more_body(self) -> None:
        self._parse()

    def exchange_ended(self, exchange: Exchange, *, keep_connection: bool) -> None:
        self._exchange = None
        if not keep_connection or self.config.is_stopping:  # the stop may have come after the head of the answer
            self._close(must_linger=not exchange.body_has_arrived)
            return
        self._idle_since = self._loop.time()
        if self._input:
            self._parse()

    # These methods parse the input, and end the connection.

    def close_when_idle(self) -> None:
        """Close the connection now if no request is in progress; otherwise `exchange_ended` closes it."""
        if self._exchange is None:
            self._close(must_linger=False)

    def cancel_request(self) -> None:
        """Cancel the request in progress, if there is one. Its client is answered with 503."""
        if self._exchange is not None:
            self._exchange.cancel()

    def _must_wait(self) -> bool:
        """Return whether parsing must wait: for an answer, or until the application has read the body so far."""
        exchange = self._exchange
        return exchange is not None and (exchange.body_has_arrived or exchange.untaken_byte_count >= MAX_UNTAKEN_BYTES)

    def _parse(self) -> None:
        """Parse as much of the input as may be parsed now. Pause the socket while much input is left unparsed."""
        # `feed` calls methods of this class. None of them calls `_parse`. If one ever does, no piece is parsed twice.
        if self._is_parsing:
            return
        self._is_parsing = True
        data, parsed_end = self._input, 0
        try:
            for _ in range(MOST_PIECES_IN_A_ROW):
                if parsed_end == len(data) or self._is_discarding or self._must_wait():
                    break
                parsed_end = self._parser.feed(data, parsed_end)
            else:
                self._loop.call_soon(self._parse)
        except Unreadable as error:
            self._refuse(error)
        finally:
            self._is_parsing = False
        self._input = b"" if self._is_discarding else data[parsed_end:]
        self._set_reading(len(self._input) < MAX_UNTAKEN_BYTES)

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
            self._exchange = Exchange(
                self, Head("HEAD" if self._parser.failed_method == b"HEAD" else "GET", b"", "1.1", [])
            )
        self._exchange.refuse(Problem(error.status, error.detail))

    def _close(self, *, must_linger: bool) -> None:
        """Close the connection once everything is written.

        With `must_linger`, discard for LINGER_S what the client still sends. If the connection were closed meanwhile,
        the kernel would reset it, and the client might not read its answer. TLS cannot end the answer and still read,
        so such a connection is closed at once.
        """
        self._is_discarding = True
        if must_linger and self._transport.can_write_eof():
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

        So one timer serves all requests. While a request is in progress, the idle time has not begun.
        """
        is_busy = self._exchange is not None
        next_check_s = self.config.keep_alive_timeout if is_busy else self._idle_left_s()
        if next_check_s <= 0:
            self._close(must_linger=False)
        else:
            self._idle_timer = self._loop.call_later(next_check_s, self._check_idle)

    def _clean_up(self) -> None:
        """Stop the idle timer, and wake `wait_for_room` and `serve` if they wait."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.resume_writing()
        if not self._closed_future.done():
            self._closed_future.set_result(None)


async def _serve_if_room(connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a connection if its source and the server may have one more, or else turn it away."""
    config = connection.config
    usage, source = config.client_usage, _source_of(writer)
    if not usage.connections.occupy(source, 1, is_proxy=usage.proxies.trusts(source)):
        await _turn_away(config, source, reader, writer)
        return
    try:
        await connection.serve(reader, writer)
    except (OSError, TimeoutError):
        pass  # the client has gone, or has sent no request in time
    finally:
        usage.connections.vacate(source, 1)


async def _turn_away(
    config: ServerConfig, source: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer the first request of a connection beyond the bound with 503. This takes LINGER_S at most.

    The answer is not sent before the client has sent something: a balancer that gets an answer before it has sent a
    request takes the connection for broken.
    """
    if config.turning_away_count >= MOST_TURNING_AWAY:
        writer.transport.abort()
        return
    if not config.turning_away_count:  # one line for all connections that wait together
        log.warning("too many connections", source=source, connections=config.client_usage.connections.total)
    config.turning_away_count += 1
    try:
        async with asyncio.timeout(LINGER_S):
            await reader.read(MAX_RECV)
            writer.write(TURN_AWAY_ANSWER)
            writer.write_eof()
            bytes_left = LINGER_BYTES
            while bytes_left > 0 and (data := await reader.read(MAX_RECV)):
                bytes_left -= len(data)
    except (OSError, TimeoutError):
        pass
    finally:
        config.turning_away_count -= 1
        writer.close()


def _source_of(writer: asyncio.StreamWriter) -> str:
    """Return the IP address that a connection comes from; "" for a Unix socket or a client that has gone."""
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
    Some servers do not have our `ServerConfig`, such as a provider that a test runs. They get Hypercorn's own class,
    and only that class needs `context`.
    """
    if isinstance(config, ServerConfig):
        return _serve_if_room(Connection(app, loop, config, state), reader, writer)
    return TCPServer(app, loop, config, context, state, reader, writer)


def _make_turn_away_answer() -> bytes:
    problem = Problem(503, "this replica has too many open connections; retry after 1 s", retry_after=1)
    lines = [b"HTTP/1.1 503 Service Unavailable", *(b"%b: %b" % header for header in closing_headers(problem))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + problem.document()


TURN_AWAY_ANSWER = _make_turn_away_answer()
