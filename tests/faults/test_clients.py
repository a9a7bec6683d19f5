"""Row 56: clients without a lease die while they ask."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.faults.asking import LEASE_TTL_MS
from tests.support.faults.checkers import Broken, Data
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import Mesh

KILLS = 4
#: Longest wait until a new process asks.
BEGIN_S = 60


class Asking:
    """The process of one client, and the ids of the tallies that must have their effect."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told: list[str] = []

    async def listen(self) -> None:
        """Read what it prints until it is dead."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):
                self.told.append(line.decode().strip())

    async def has_told(self, count: int) -> bool:
        return len(self.told) >= count

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


@asynccontextmanager
async def asking(mesh: Mesh, prefix: str) -> AsyncIterator[Asking]:
    """Start a client; kill it at the end of the block, and read what it had printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.faults.asking", mesh.server.url, prefix, stdout=asyncio.subprocess.PIPE
    )
    client = Asking(process)
    listening = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        client.kill()
        await process.wait()
        await listening


async def _traces(mesh: Mesh) -> list[str]:
    """Return what the server knows of clients: keys and connections."""
    keys = [str(key) for key in await mesh.admin.keys("*client-*")]
    return keys + [each["name"] for each in await mesh.admin.client_list() if "client-" in each["name"]]


async def _none_left(mesh: Mesh) -> bool:
    return not await _traces(mesh)


@row(56, "kill -9 of clients without a lease while they call, gather and send")
async def test_row_56_a_killed_client_leaves_nothing_behind(faults: Faults) -> None:
    """What it was told holds, nothing happens twice, and its keys expire. The mesh goes on without a failure."""
    mesh = await faults.mesh(classes="AABB")
    told: list[str] = []
    async with mesh.load(clients=4):
        for number in range(KILLS):
            async with asking(mesh, f"asking-{number}") as client:
                enough = faults.chance.randrange(60, 120)
                await mesh.within(BEGIN_S, lambda client=client, enough=enough: client.has_told(enough), "it asks")
                if not await _traces(mesh):
                    raise Broken("the server does not know the client")
            told += client.told
        killed = time.monotonic()
        faults.took(await mesh.within(LEASE_TTL_MS / 100 + 1, lambda: _none_left(mesh), "its keys are gone", killed))
    await faults.check(mesh)
    effects = Data(mesh.connect).effects
    lost = [id for id in told if not effects[id]]
    doubled = [id for id, count in effects.items() if id.startswith("asking-") and count > 1]
    if lost or doubled:
        raise Broken(f"of {len(told)} tallies {lost[:5]} have no effect; {doubled[:5]} have several")
    faults.note(f"{len(told)} tallies of clients")
