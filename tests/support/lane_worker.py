"""A member of the mesh without HTTP, for requests in lanes; `test_lanes` kills its processes at random.

shared:lanes:marks    hash   "<lane> <number>" -> how often it took effect
shared:lanes:last     hash   lane -> number of the last request that took effect
shared:lanes:astray   hash   "<lane> <number>" -> number that took effect before it, where that is not the one before
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

from msgspec import Struct

from mesh import Limit, Operations, Retry, Transaction
from tests.support.member import work

lanes = Operations("lanes")
marks = lanes.hash("marks", str, int, shared=True)
last = lanes.hash("last", str, int, shared=True)
astray = lanes.hash("astray", str, int, shared=True)


class Step(Struct):
    lane: str
    number: int


class OutOfOrder(Exception):
    """One try of ten fails."""


@lanes.command(
    limit=Limit(by="lane", concurrency=1),
    retry=Retry(most=100, first=timedelta(milliseconds=50), longest=timedelta(milliseconds=200)),
)
async def step(tx: Transaction, body: Step) -> None:
    """Note that it took effect, and after which one; some tries fail, and the process may be killed before they do."""
    before = await tx.get(last[body.lane])
    tx.add(marks[f"{body.lane} {body.number}"], 1)
    if before != (body.number - 1 if body.number else None):
        tx.set(astray[f"{body.lane} {body.number}"], -1 if before is None else before)
    tx.set(last[body.lane], body.number)
    await asyncio.sleep(random.random() / 100)
    if random.random() < 0.1:
        raise OutOfOrder(body.lane)


if __name__ == "__main__":
    asyncio.run(work(lanes))
