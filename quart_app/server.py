"""Sockets and Hypercorn: one process listens on its public and its private port, and drains well."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from quart import Quart

from quart_app.settings import AppSettings

#: Connections that may wait to be accepted.
BACKLOG = 1024


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


class _Connection(TCPServer):
    """Hypercorn's connection, closed as soon as its client is gone.

    Hypercorn 0.18 keeps a descriptor for the whole keep-alive time after the client has closed: it waits for the task
    that would have ended an idle connection.
    """

    _client_gone = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._client_gone = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if not (self._client_gone and isinstance(event, Updated)):
            await super().protocol_send(event)


# The one name by which Hypercorn makes them.
vars(hypercorn_run)["TCPServer"] = _Connection


async def run(
    app: Quart,
    sockets: list[socket.socket],
    stop: Callable[[], Awaitable[object]],
    *,
    grace_s: float,
    common: socket.socket | None = None,
) -> None:
    """Serve an application until `stop` returns, then finish what is under way within `grace_s`.

    `common` is one more socket, from which others accept, too.
    """
    config = Config()
    all_sockets = sockets if common is None else [*sockets, common]
    config.bind = [f"fd://{listening.dup().detach()}" for listening in all_sockets]
    config.backlog = BACKLOG
    config.graceful_timeout = grace_s
    config.keep_alive_timeout = 75
    config.include_server_header = False
    config.h11_max_incomplete_size = 32 * 1024
    config.errorlog = None
    config.accesslog = None
    serving = asyncio.ensure_future(serve(app, config, shutdown_trigger=_trigger(stop)))
    try:
        await asyncio.shield(serving)
    finally:
        serving.cancel()


def _trigger(stop: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    async def trigger() -> None:
        await stop()

    return trigger
