"""Puts /values together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mesh import Replica, Request
from quart_app.service import Context, Service
from quart_app.values import sweep
from quart_app.values.factorise import factorise
from quart_app.values.handlers import handlers
from quart_app.values.routes import routes
from quart_app.values.settings import ValuesSettings


def create(context: Context) -> Service:
    """The service."""
    settings = ValuesSettings()

    async def compute(value: int, request: Request) -> list[int]:
        if value < 1 << 64:
            return factorise(value)
        return await asyncio.to_thread(factorise, value)

    @contextlib.asynccontextmanager
    async def lifespan(replica: Replica) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(sweep.run(replica, settings.sweep_ms))
            yield
            sweeping.cancel()

    return Service(
        "values",
        public=[routes(context, settings)],
        worker=handlers(compute),
        lifespan=lifespan,
    )
