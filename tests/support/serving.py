"""An application served on a port of this process, and raw bytes sent to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from quart import Quart

from quart_app.http import server
from quart_app.http.clients import ClientUsage
from quart_app.http.sockets import listen
from quart_app.settings import AppSettings


def settings(**chosen: object) -> AppSettings:
    return AppSettings(**{"port": 0, "private_port": 0, **chosen})


@contextlib.asynccontextmanager
async def served(app: Quart, clients: ClientUsage | None = None) -> AsyncIterator[str]:
    """The address that an application is served at while the block lasts."""
    sockets = listen(settings())
    stop = asyncio.Event()
    running = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=1, client_usage=clients))
    yield sockets.address(sockets.public)
    stop.set()
    await running
    sockets.close()


async def raw(address: str, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that a server answers to these bytes until it closes the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(5):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        answers = await reader.read()
    writer.close()
    return answers.lower()
