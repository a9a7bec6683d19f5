"""Serving with Hypercorn: one application on its sockets, until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import uvloop
from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve
from quart import Quart

from quart_app.http.clients import ClientUsage
from quart_app.http.connection import KEEP_ALIVE_S, ServerConfig, connection_for
from quart_app.http.drain import refuse_connections
from quart_app.http.sockets import BACKLOG
from quart_app.settings import AppSettings

#: How many connections are accepted from a socket in a turn of the event loop. In each turn, uvloop accepts one
#: connection for each time that it was given the socket. So it is given the socket this number of times. asyncio's own
#: loop accepts all connections that wait. With 1, the last of 256 clients that connect together waits for 0.3 s and
#: more, because turns are long under load. Each further time that uvloop is given the socket costs 3 µs at a connection
#: that comes alone.
ACCEPTED_PER_TURN = 8


def configuration(
    sockets: Sequence[socket.socket], grace_s: float, client_usage: ClientUsage | None = None
) -> ServerConfig:
    """Return Hypercorn's settings for these sockets.

    After a stop, requests in progress have `grace_s` to finish. Tests and benchmarks leave `client_usage` out: then the
    server has bounds of its own.
    """
    config = ServerConfig(client_usage or ClientUsage(AppSettings()))
    # Hypercorn gets a copy of each descriptor, and closes it. A socket may be in the list several times.
    config.bind = [f"fd://{listening_socket.dup().detach()}" for listening_socket in sockets]
    config.backlog = BACKLOG
    # One second more, so that `ServerConfig.cancel_requests` answers late requests before Hypercorn cuts them.
    config.graceful_timeout = grace_s + 1
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.include_server_header = False
    config.errorlog = None
    config.accesslog = None  # `Application` and `Exchange` log the requests
    return config


async def run(
    app: Quart,
    sockets: list[socket.socket],
    wait_for_stop: Callable[[], Awaitable[object]],
    *,
    grace_s: float,
    common: socket.socket | None = None,
    client_usage: ClientUsage | None = None,
) -> None:
    """Serve an application until `wait_for_stop` returns, then let requests in progress finish within `grace_s`.

    A request that is not answered by then, or when this function is cancelled, is answered with 503. `common` is one
    more socket to accept from; other processes accept from it, too, so a stop does not refuse its new connections.
    `client_usage` counts the connections.
    """
    # The common socket is not repeated: each process accepts only one of its connections in a turn, so that all
    # processes get some. asyncio's own loop needs no repetition.
    repeated_sockets = sockets * (ACCEPTED_PER_TURN - 1) if isinstance(asyncio.get_running_loop(), uvloop.Loop) else []
    # Hypercorn serves each connection with the class that has this name in its module, and no option names another.
    vars(hypercorn_run)["TCPServer"] = connection_for
    accepting_sockets = [*sockets, *repeated_sockets] if common is None else [*sockets, *repeated_sockets, common]
    config = configuration(accepting_sockets, grace_s, client_usage)
    serving_task = asyncio.ensure_future(
        serve(app, config, shutdown_trigger=_make_stop_trigger(wait_for_stop, grace_s, config, sockets))
    )
    try:
        # If this function is cancelled, it cancels Hypercorn, too, but does not wait for its end.
        await asyncio.shield(serving_task)
    finally:
        serving_task.cancel()


def _make_stop_trigger(
    wait_for_stop: Callable[[], Awaitable[object]],
    grace_s: float,
    config: ServerConfig,
    sockets: Sequence[socket.socket],
) -> Callable[[], Awaitable[None]]:
    """Return a function for Hypercorn, which shuts down when the function returns.

    The function waits for `wait_for_stop`. Then it refuses new connections, and closes the open ones once their
    requests are answered or late.
    """

    async def wait_for_shutdown_time() -> None:
        await wait_for_stop()
        # Hypercorn closes the sockets one after the other, and may wait for connections in between. Without
        # `refuse_connections`, the last sockets would accept connections during this time.
        for listening_socket in sockets:
            refuse_connections(listening_socket)
        config.stop()
        asyncio.get_running_loop().call_later(grace_s, config.cancel_requests)

    return wait_for_shutdown_time
