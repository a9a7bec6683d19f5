"""`python -m tests.support.faults.later_worker`: a member of the mesh without HTTP, for the rows of `mesh/later`.

    shared:late:marks    hash   text of a request -> how often it took effect
    shared:late:ticks    hash   second of a tick -> how often it took effect
    shared:late:missed   value  how many ticks had no run of their own
    shared:late:last     hash   lane -> number of the last step that took effect
    shared:late:astray   hash   "<lane> <number>" -> number of the step before it, where that is no lower one
    shared:late:begun    hash   "<lane> <number>" -> when (ms) a request with a rate was put on its stream

It joins again when its lease is lost. FAULTS_MUTATION names the safety mechanism to remove.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from msgspec import Struct

from mesh import LeaseLost, Limit, Mesh, MeshSettings, Operations, Retry, Tick, Ticket, Transaction, join

late = Operations("late")
marks = late.hash("marks", str, int, shared=True)
ticks = late.hash("ticks", str, int, shared=True)
missed = late.value("missed", int, 0, shared=True)
last = late.hash("last", str, int, shared=True)
astray = late.hash("astray", str, int, shared=True)
begun = late.hash("begun", str, int, shared=True)
#: Two requests of one lane of `pace` begin at least so many ms apart.
PACE_MS = 100


class Mark(Struct):
    text: str
    #: how many tries fail before one succeeds
    fails: int = 0


class Step(Struct):
    lane: str
    number: int

    @property
    def text(self) -> str:
        return f"{self.lane} {self.number}"


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
async def begin_keyed(tx: Transaction, body: Mark) -> None:
    """Send a mark for later whose text is its idempotency key."""
    tx.send(mark, body, key=body.text, after=timedelta(milliseconds=300))


@late.command(limit=Limit(by="lane", concurrency=1))
async def step(tx: Transaction, body: Step) -> None:
    """Count one effect, and note where a step before it comes after it."""
    tx.add(marks[body.text])
    before = await tx.get(last[body.lane])
    if before is not None and before >= body.number:
        tx.set(astray[body.text], before)
    tx.set(last[body.lane], body.number)


@late.command(limit=Limit(by="lane", rate=1, per=timedelta(milliseconds=PACE_MS)))
async def pace(tx: Transaction, body: Step) -> None:
    """Count one effect, and note when the request was put on its stream."""
    tx.add(marks[body.text])
    tx.set(begun[body.text], int(tx.request.id.partition("-")[0]))


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
