"""Serving with Hypercorn: one application on its sockets, until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import uvloop
from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve
from quart import Quart

from quart_app.http.clients import Clients
from quart_app.http.connection import KEEP_ALIVE_S, Settings, connection_for
from quart_app.http.drain import refuse
from quart_app.http.sockets import BACKLOG
from quart_app.settings import AppSettings

#: How many times uvloop gets each socket, and so how many connections it accepts from the socket in a turn of the event
#: loop. Turns are long under load, so with 1 the last of 256 clients that connect together waits for 0.3 s and more.
#: Each further time costs 3 µs for a connection that comes alone. asyncio's own loop accepts all that wait.
ACCEPTED_A_TURN = 8


def configuration(sockets: Sequence[socket.socket], grace_s: float, clients: Clients | None = None) -> Settings:
    """Return Hypercorn's settings for these sockets."""
    config = Settings(clients or Clients(AppSettings()))
    config.bind = [f"fd://{listening.dup().detach()}" for listening in sockets]
    config.backlog = BACKLOG
    # One second more than `_trigger` leaves the requests, so that `_trigger` ends them before Hypercorn does.
    config.graceful_timeout = grace_s + 1
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.include_server_header = False
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

    A request that is not answered by then, or when this function is cancelled, is answered with 503. `common` is one
    more socket to accept from; other processes accept from it, too. `clients` counts the connections.
    """
    # The common socket is not repeated, so each process accepts one of its connections in a turn, and all get some.
    repeated = sockets * (ACCEPTED_A_TURN - 1) if isinstance(asyncio.get_running_loop(), uvloop.Loop) else []
    # Hypercorn serves each connection with the class that has this name in its module, and no option names another.
    vars(hypercorn_run)["TCPServer"] = connection_for
    accepted_from = [*sockets, *repeated] if common is None else [*sockets, *repeated, common]
    config = configuration(accepted_from, grace_s, clients)
    serving = asyncio.ensure_future(serve(app, config, shutdown_trigger=_stop_trigger(stop, grace_s, config, sockets)))
    try:
        await asyncio.shield(serving)
    finally:
        serving.cancel()


def _stop_trigger(
    stop: Callable[[], Awaitable[object]], grace_s: float, config: Settings, sockets: Sequence[socket.socket]
) -> Callable[[], Awaitable[None]]:
    """Return the function at whose end Hypercorn shuts down. It also closes connections and ends late requests."""

    async def trigger() -> None:
        await stop()
        # Hypercorn closes one socket after the other, each when its connections have ended. Until then the last ones
        # would still accept.
        for listening in sockets:
            refuse(listening)
        config.stop()
        asyncio.get_running_loop().call_later(grace_s, config.cancel_requests)

    return trigger
