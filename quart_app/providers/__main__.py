"""`python -m quart_app.providers free|paid` runs one provider until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any, Literal

import click
from hypercorn.asyncio import serve
from hypercorn.config import Config

from quart_app.providers.launch import FREE_PORT, PAID_PORT
from quart_app.providers.simulator import Provider, create_app
from quart_app.providers.window import Window


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Simulators of the two message providers, to try the message service."""


_host_option = click.option("--host", default="127.0.0.1", envvar="HOST", help="address to listen on")
_latency_option = click.option(
    "--latency-ms", type=click.IntRange(0), default=50, envvar="PROVIDER_LATENCY_MS", help="time that a message takes"
)


def _port_option(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=default,
        envvar="PORT",
        help="port to listen on; 0: any free one",
    )


@main.command()
@_host_option
@_port_option(FREE_PORT)
@_latency_option
@click.option(
    "--limit", type=click.IntRange(1), default=10, envvar="MESSAGES_FREE_LIMIT", help="requests before it blocks"
)
@click.option(
    "--block-seconds",
    type=click.FloatRange(0.05),
    default=60,
    envvar="MESSAGES_FREE_BLOCK_SECONDS",
    help="length of a block",
)
@click.option("--retry-after", type=click.Choice(["seconds", "date"]), default="seconds", help="form of Retry-After")
def free(
    host: str, port: int, latency_ms: int, limit: int, block_seconds: float, retry_after: Literal["seconds", "date"]
) -> None:
    """Accept LIMIT messages, then refuse for BLOCK_SECONDS."""
    provider = Provider("free", Window(limit, block_seconds), latency_ms / 1000, retry_after)
    asyncio.run(_serve(provider, host, port))


@main.command()
@_host_option
@_port_option(PAID_PORT)
@_latency_option
def paid(host: str, port: int, latency_ms: int) -> None:
    """Accept every message."""
    asyncio.run(_serve(Provider("paid", latency_s=latency_ms / 1000), host, port))


async def _serve(provider: Provider, host: str, port: int) -> None:
    stopped = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    # Many clients may connect at the same moment. The kernel keeps up to `backlog` connections until we accept them.
    listener = socket.create_server((host, port), backlog=1024)
    click.echo(f"{provider.kind} provider: http://{host}:{listener.getsockname()[1]}/")
    await serve(create_app(provider), _hypercorn_config(listener), shutdown_trigger=stopped.wait)


def _hypercorn_config(listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # Hypercorn closes this socket
    config.loglevel = "WARNING"
    # Clients close idle connections earlier than this, so the server closes none while a request is on its way.
    config.keep_alive_timeout = 75
    config.graceful_timeout = 3  # s for requests in progress after a signal
    return config


if __name__ == "__main__":
    main()
