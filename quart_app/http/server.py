"""Sockets and Hypercorn: one process listens on its public and its private port, and drains well."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import h11
from hypercorn import protocol as hypercorn_protocol
from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, H11SendableEvent, Scope
from quart import Quart
from quart.utils import encode_headers
from werkzeug.exceptions import BadRequest, HTTPException

from quart_app.http.problems import Problem
from quart_app.settings import AppSettings

#: Connections that may wait to be accepted.
BACKLOG = 1024
#: How long a connection stays open without a request.
KEEP_ALIVE_S = 75
#: How long and how much a client may go on sending after an early answer before its connection is cut.
LINGER_S = 1.0
LINGER_BYTES = 32 << 20


@dataclass(slots=True)
class Sockets:
    """What a replica listens on."""

    public: socket.socket
    private: socket.socket
    #: a socket that several replicas of this machine accept from
    common: socket.socket | None
    host: str

    def address(self, listening: socket.socket) -> str:
        """host:port that others reach it at."""
        return f"{self.host}:{listening.getsockname()[1]}"

    def close(self) -> None:
        for listening in (self.public, self.private, self.common):
            if listening is not None:
                listening.close()


def listen(settings: AppSettings) -> Sockets:
    """Open the ports. Raises OSError, with the address in its text, where one is taken."""
    public = _open(settings.host, settings.port, listening=not settings.listen_when_ready)
    try:
        private = _open(settings.host, settings.private_port)
    except OSError:
        public.close()
        raise
    common = socket.socket(fileno=settings.listen_fd) if settings.listen_fd >= 0 else None
    return Sockets(public, private, common, settings.advertise_host or _reachable_at(settings.host))


def _open(host: str, port: int, *, listening: bool = True) -> socket.socket:
    """A socket at this address. One that does not listen yet refuses whoever connects."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if listening:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        return _bind(family, host, port)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _reachable_at(host: str) -> str:
    if host not in {"0.0.0.0", "::"}:
        return host
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return "127.0.0.1"


class _Settings(Config):
    """Hypercorn's settings, and the connections that are open under them."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: set[_Connection] = set()

    def end(self) -> None:
        """Cancel what is still under way."""
        for connection in self.connections:
            connection.end()


class _Connection(TCPServer):
    """Hypercorn's connection, closed as soon as its client is gone, and no sooner than its client can read the answer.

    Hypercorn 0.18 keeps a descriptor for the whole keep-alive time after the client has closed: it waits for the task
    that would have ended an idle connection. And it closes at once where it has refused a request that is still on its
    way: what arrives then is answered with a reset, which takes the refusal along. It also makes two tasks for every
    request to see that the connection does not idle for too long; here one does it for all of them.

    And it ends what is left after the grace only once asyncio says that the server is closed, which from Python 3.12 on
    is when no connection is left (https://github.com/pgjones/hypercorn/issues/308; uvloop says so at once).
    """

    config: _Settings
    _task: asyncio.Task[None]
    _ended = False
    _client_gone = False
    _lingering = False
    #: since when no request is under way, by the loop's clock
    _idle_since = math.inf

    async def run(self) -> None:
        self._idle_since = self.loop.time()
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        self.config.connections.add(self)
        try:
            await super().run()
        except asyncio.CancelledError:
            if not self._ended or self._task.uncancel():
                raise
        finally:
            self.config.connections.discard(self)

    def end(self) -> None:
        """Whoever is not answered by now is told so."""
        self._ended = True
        self._task.cancel()

    async def _read_data(self) -> None:
        """Hand what the client sends to the protocol until the client stops; while lingering, discard it."""
        discarded = 0
        with contextlib.suppress(OSError):
            while not self.reader.at_eof() and discarded < LINGER_BYTES:
                data = await self.reader.read(MAX_RECV)
                if self._lingering:
                    discarded += len(data)
                else:
                    await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())
        self._client_gone = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._idle_since = self.loop.time() if event.idle else math.inf
        elif isinstance(event, Closed) and not self._client_gone and self._is_still_sent_to():
            self._linger()
        else:
            await super().protocol_send(event)

    async def _idle_timeout(self) -> None:
        """Close the connection when it has been idle for long, or the server stops; one with a request under way is
        closed after its answer."""
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


#: Why bytes are no request, by the status that h11 suggests.
UNREADABLE = {
    400: "the request is not valid HTTP/1.1",
    431: "the head of the request is longer than 32 KB",
    501: "Transfer-Encoding can only be chunked",
}


class _Http1(H11Protocol):
    """HTTP/1.1 and nothing else: whoever asks for another protocol is answered in this one, as RFC 9110 allows.

    Hypercorn would switch to HTTP/2 for an unencrypted `Upgrade: h2c`, though the client asked for the connection to be
    closed after the answer, and would keep one open after it has refused a WebSocket.
    """

    #: the head of an answer whose body is about to follow
    _head = b""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Let a head go together with its body, where that is known to be whole: nobody is woken for half an answer,
        and no balancer has begun to pass one on when the process dies in between."""
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
        """Stay."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Hand the request to the application, or refuse one whose end two headers disagree about.

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
        problem.headers["Connection"] = "close"
        answer = problem.response()
        headers = [*encode_headers(answer.headers), *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=answer.status_code, headers=headers))
        if method != b"HEAD":
            await self._send_h11_event(h11.Data(data=await answer.get_data(as_text=False)))
        await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())


def _closing(response: h11.Response) -> h11.Response:
    """The response with `Connection: close`.

    An answer that leaves before its request has been read completely must say that the connection ends with it.
    Otherwise a balancer puts the connection back into its pool, and the next request on it fails.
    """
    headers = [(name, value) for name, value in response.headers if name != b"connection"]
    return h11.Response(status_code=response.status_code, headers=[*headers, (b"connection", b"close")])


def configuration(sockets: Sequence[socket.socket], grace_s: float) -> _Settings:
    """Hypercorn's settings."""
    config = _Settings()
    config.bind = [f"fd://{listening.dup().detach()}" for listening in sockets]
    config.backlog = BACKLOG
    # Ours ends first: it does so whatever Hypercorn waits for.
    config.graceful_timeout = grace_s + 1
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.include_server_header = False
    config.h11_max_incomplete_size = 32 * 1024
    config.errorlog = None
    config.accesslog = None
    return config


async def run(
    app: Quart,
    sockets: list[socket.socket],
    stop: Callable[[], Awaitable[object]],
    *,
    grace_s: float,
    common: socket.socket | None = None,
) -> None:
    """Serve an application until `stop` returns, then finish what is under way within `grace_s`.

    Whoever is not answered by then, or when this is cancelled, is told 503. `common` is one more socket, from which
    others accept, too.
    """
    # The one name by which Hypercorn makes each.
    vars(hypercorn_run)["TCPServer"] = _Connection
    vars(hypercorn_protocol)["H11Protocol"] = _Http1
    config = configuration(sockets if common is None else [*sockets, common], grace_s)
    serving = asyncio.ensure_future(serve(_to_the_last(app), config, shutdown_trigger=_trigger(stop, grace_s, config)))
    try:
        await asyncio.shield(serving)
    finally:
        serving.cancel()


def _to_the_last(app: Quart) -> Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]:
    """The application, and an answer for whom it has none, where Hypercorn would say 500 as for a mistake of ours.

    Who still waits when the application is cancelled hears 503; what it can make no request of is a bad request.
    """

    async def answering(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        begun = scope["type"] != "http"

        async def noting(message: ASGISendEvent) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if scope["type"] == "http" and not _is_readable(scope["path"]):
                raise BadRequest("the request names no path")
            await app(scope, receive, noting)
        except HTTPException as error:
            await _tell(send, Problem(error.code or 400, error.description or ""))
        except asyncio.CancelledError:
            if not begun:
                await _tell(send, Problem(503, "this replica has ended", retry_after=1))
            raise

    return answering


def _is_readable(path: str) -> bool:
    """Whether there is a path, or an address with one. What is wrong with the host alone, Quart says."""
    if path.startswith("/"):
        return True
    with contextlib.suppress(ValueError):
        return bool(path and urlsplit(path))
    return False


async def _tell(send: ASGISendCallable, problem: Problem) -> None:
    problem.headers["Connection"] = "close"
    answer = problem.response()
    headers = encode_headers(answer.headers)
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": await answer.get_data(as_text=False), "more_body": False})


def _trigger(stop: Callable[[], Awaitable[object]], grace_s: float, config: _Settings) -> Callable[[], Awaitable[None]]:
    async def trigger() -> None:
        await stop()
        asyncio.get_running_loop().call_later(grace_s, config.end)

    return trigger
