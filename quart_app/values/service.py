"""Puts /values together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mesh import Replica
from quart_app.service import Context, Service
from quart_app.values import sweep
from quart_app.values.claims import Computing
from quart_app.values.handlers import handlers
from quart_app.values.jobs import Errands
from quart_app.values.metrics import FactorMetrics
from quart_app.values.pool import FactorPool
from quart_app.values.routes import routes
from quart_app.values.settings import ValuesSettings


def create(context: Context) -> Service:
    """The service."""
    settings = ValuesSettings()

    pool = FactorPool(
        processes=settings.processes,
        hard_limit=settings.hard_limit,
        brisk_limit=settings.brisk_limit,
        sieve_bits=settings.sieve_bits,
        metrics=FactorMetrics(context.metrics),
    )

    computing = Computing(lambda: context.mesh, pool)

    @contextlib.asynccontextmanager
    async def lifespan(replica: Replica) -> AsyncIterator[None]:
        async with pool, asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(sweep.run(replica, settings.sweep_ms))
            yield
            sweeping.cancel()

    return Service(
        "values",
        public=[routes(context, settings, pool)],
        worker=handlers(computing, Errands(lambda: context.mesh, settings.chunk, computing.progress)),
        lifespan=lifespan,
    )
