"""`python -m tests.support.faults.later_worker`: a member of the mesh without HTTP, for the rows of `mesh/later`.

    shared:late:marks    hash   text of a request -> how often it took effect
    shared:late:ticks    hash   second of a tick -> how often it took effect
    shared:late:missed   value  how many ticks had no run of their own

It joins again when its lease is lost. FAULTS_MUTATION names the safety mechanism to remove.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from msgspec import Struct

from mesh import LeaseLost, Mesh, MeshSettings, Operations, Retry, Tick, Ticket, Transaction, join

late = Operations("late")
marks = late.hash("marks", str, int, shared=True)
ticks = late.hash("ticks", str, int, shared=True)
missed = late.value("missed", int, 0, shared=True)


class Mark(Struct):
    text: str
    #: how many tries fail before one succeeds
    fails: int = 0


class NotYet(Exception):
    """This try was to fail."""


#: The membership of this process.
members: list[Mesh] = []


@late.command(retry=Retry(most=100, first=timedelta(milliseconds=100), factor=1))
async def mark(tx: Transaction, body: Mark) -> None:
    """Count one effect, after some tries that fail."""
    tx.add(marks[body.text])
    if tx.request.failed_tries < body.fails:
        raise NotYet(body.text)


@late.command
async def begin(tx: Transaction, body: Mark) -> None:
    """Send a mark for later, with the commit."""
    tx.send(mark, body, after=timedelta(milliseconds=300))


@late.command
async def take_back(tx: Transaction, body: Mark) -> bool:
    """Cancel the request with this key, and return whether it was removed."""
    return await members[-1].cancel(Ticket(mark.name, body.text))


@late.every("* * * * * *", overlap=True)
async def tick(tx: Transaction, tick: Tick) -> None:
    """Count the effects of each second."""
    tx.add(ticks[str(tick.at // 1000)])
    if tick.missed:
        tx.add(missed, tick.missed)


async def main() -> None:
    while True:
        try:
            async with join(late, settings=MeshSettings()) as mesh:
                members.append(mesh)
                await asyncio.Event().wait()
        except LeaseLost:
            continue


if __name__ == "__main__":
    from tests.support.faults import later_worker, mutations

    mutations.apply(os.environ.get("FAULTS_MUTATION", ""))
    asyncio.run(later_worker.main())
