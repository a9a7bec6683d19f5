"""Rows 76 and 77: requests wait in lanes, for a rate and with keys while the server restarts and replicas die."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.faults import limited
from tests.support.faults.late import WORKERS, LateMesh, late_mesh
from tests.support.faults.matrix import Faults, row

#: How often the server restarts in row 76, and workers die in row 77.
RESTARTS = 4
KILLS = 8
#: How long all workers are down. Meanwhile the time of many requests of a rate passes.
OUTAGE_S = 2.0
#: Longest wait until all requests that were sent are done.
SETTLED_S = 90.0


@contextlib.asynccontextmanager
async def loaded(faults: Faults) -> AsyncIterator[LateMesh]:
    """A mesh under requests with limits; in the end each has happened once, in order, and nothing is left."""
    async with late_mesh(faults.folder / "limits", faults.chance, faults.mutation) as mesh:
        loading = asyncio.create_task(limited.load(mesh))
        try:
            yield mesh
        finally:
            loading.cancel()
            await asyncio.wait([loading])
        await mesh.settled(SETTLED_S)
        faults.note(f"{mesh.judge()}, {limited.judge(mesh.server)}")


@row(76, "Redis is killed and restarts while requests wait in lanes, for a rate and with keys")
async def test_row_76_limits_outlive_a_restart_of_the_server(faults: Faults) -> None:
    """Lanes, places, rates and keys are in the state in which the server has left them."""
    async with loaded(faults) as mesh:
        for _ in range(RESTARTS):
            await asyncio.sleep(faults.chance.uniform(0.2, 1))
            await limited.waiting(mesh)
            await asyncio.to_thread(mesh.server.kill)
            await asyncio.sleep(faults.chance.uniform(0, 0.5))
            await asyncio.to_thread(mesh.server.start)
            await mesh.live(WORKERS)


@row(77, "kill -9 of workers at random, and of all at once, while requests wait in lanes, for a rate and with keys")
async def test_row_77_limits_outlive_their_replicas(faults: Faults) -> None:
    """No place is lost, and after a time without a replica no more begin than the rate lets."""
    async with loaded(faults) as mesh:
        for _ in range(KILLS):
            await asyncio.sleep(faults.chance.uniform(0, 0.3))
            await mesh.lose(faults.chance.choice(mesh.workers))
            await mesh.add()
        await mesh.live(WORKERS)
        await limited.waiting(mesh)
        for worker in list(mesh.workers):
            await mesh.lose(worker)
        await asyncio.sleep(OUTAGE_S)
        await mesh.replace()
