"""Builds the service /values from its parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mesh import Mesh
from mesh.raw import Replica
from quart_app.service import Context, Service
from quart_app.values import help, sweep
from quart_app.values.answers import Responses
from quart_app.values.budget import Budget
from quart_app.values.computing import Computing
from quart_app.values.errands import Errands
from quart_app.values.handlers import values_worker
from quart_app.values.help import HelpFromOthers
from quart_app.values.metrics import FactorMetrics
from quart_app.values.pace import Pace
from quart_app.values.panel import JobsPanel
from quart_app.values.pool import FactorPool
from quart_app.values.primes import Primes
from quart_app.values.routes import ValuesRoutes
from quart_app.values.settings import ValuesSettings


def create(context: Context) -> Service:
    """Return the service, with its settings from the environment."""
    settings = ValuesSettings()

    # A new membership takes the place of a lost one, so this and `take_room` read `context.mesh` at each call.
    def current_replica() -> Replica:
        return context.mesh.replica

    pace = Pace()
    # A long answer beyond this budget is refused with Retry-After: 2 (seconds).
    responses = Responses(Budget(settings.answers_bytes, "bytes of answers", 2))
    pool = FactorPool(
        processes=settings.processes,
        hard_limit=settings.hard_limit,
        brisk_limit=settings.brisk_limit,
        sieve_bits=settings.sieve_bits,
        metrics=FactorMetrics(context.metrics),
        pace=pace,
        help_from_others=HelpFromOthers(current_replica),
    )
    computing = Computing(current_replica, pool)
    errands = Errands(current_replica, computing.progress)
    primes = Primes(pace)

    def take_room(byte_count: int) -> None:
        context.mesh.memory.store(byte_count)

    @contextlib.asynccontextmanager
    async def lifespan(mesh: Mesh) -> AsyncIterator[None]:
        async with pool, asyncio.TaskGroup() as tasks:
            background_tasks = [
                tasks.create_task(sweep.run(mesh.replica, settings.sweep_ms, pace)),
                tasks.create_task(primes.run(mesh.replica)),
            ]
            yield
            for task in background_tasks:
                task.cancel()

    panel = JobsPanel(settings)
    return Service(
        "values",
        public=ValuesRoutes(context, settings, pool, pace, responses).blueprints,
        operations=[
            values_worker(computing, errands, pace, take_room, primes.filters),
            help.help_worker(pool.help_for_others, pool.processes, current_replica),
        ],
        lifespan=lifespan,
        panel=panel.read,
        acts=[panel.act],
    )
