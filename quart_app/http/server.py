"""Serving with Hypercorn: one application on its sockets, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from hypercorn import protocol as hypercorn_protocol
from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart import Quart
from werkzeug.exceptions import BadRequest, HTTPException

from quart_app.http.clients import Clients
from quart_app.http.connection import KEEP_ALIVE_S, Http1, Settings, connection_for, last_headers
from quart_app.http.problems import Problem
from quart_app.http.sockets import BACKLOG
from quart_app.settings import AppSettings


def configuration(sockets: Sequence[socket.socket], grace_s: float, clients: Clients | None = None) -> Settings:
    """Return Hypercorn's settings for these sockets."""
    config = Settings(clients or Clients(AppSettings()))
    config.bind = [f"fd://{listening.dup().detach()}" for listening in sockets]
    config.backlog = BACKLOG
    # `_trigger` ends connections first, whatever Hypercorn waits for.
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
    clients: Clients | None = None,
) -> None:
    """Serve an application until `stop` returns, then let requests in progress finish within `grace_s`.

    A request that is not answered by then, or when this is cancelled, is answered with 503. `common` is one more socket
    to accept from, which other processes accept from, too. `clients` is what the connections are counted in.
    """
    # Hypercorn makes each by this name, and has no other way to choose a class.
    vars(hypercorn_run)["TCPServer"] = connection_for
    vars(hypercorn_protocol)["H11Protocol"] = Http1
    config = configuration(sockets if common is None else [*sockets, common], grace_s, clients)
    serving = asyncio.ensure_future(
        serve(_answering_always(app), config, shutdown_trigger=_trigger(stop, grace_s, config))
    )
    try:
        await asyncio.shield(serving)
    finally:
        serving.cancel()


def _answering_always(app: Quart) -> Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]:
    """Return the application with an answer for requests that it leaves without one; Hypercorn would answer 500.

    A request that the application is cancelled in is answered with 503, one that it cannot read with 400.
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
                await _tell(
                    send, Problem(503, "this replica stops before it can answer; retry after 1 s", retry_after=1)
                )
            raise

    return answering


def _is_readable(path: str) -> bool:
    """Return whether this is a path or a URL. Quart itself refuses a URL whose host is wrong."""
    if path.startswith("/"):
        return True
    with contextlib.suppress(ValueError):
        return bool(path and urlsplit(path))
    return False


async def _tell(send: ASGISendCallable, problem: Problem) -> None:
    await send({"type": "http.response.start", "status": problem.status, "headers": last_headers(problem)})
    await send({"type": "http.response.body", "body": problem.document(), "more_body": False})


def _trigger(stop: Callable[[], Awaitable[object]], grace_s: float, config: Settings) -> Callable[[], Awaitable[None]]:
    async def trigger() -> None:
        await stop()
        asyncio.get_running_loop().call_later(grace_s, config.end)

    return trigger
