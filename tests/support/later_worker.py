"""A member of the mesh without HTTP, for requests that wait, are tried again, or run by themselves.

`python -m tests.support.later_worker` is one process; `test_later` kills it at random.

    shared:later:marks   hash   text of a request -> how often it took effect
    shared:later:ticks   hash   second of a tick -> how often it took effect
    shared:later:missed  value  how many ticks had no run of their own
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

from msgspec import Struct

from mesh import Operations, Retry, Tick, Transaction
from tests.support.member import work

later = Operations("later")
marks = later.hash("marks", str, int, shared=True)
ticks = later.hash("ticks", str, int, shared=True)
missed = later.value("missed", int, 0, shared=True)


class Mark(Struct):
    text: str


class OutOfOrder(Exception):
    """One try of three fails."""


@later.command(retry=Retry(most=100, first=timedelta(milliseconds=200), longest=timedelta(seconds=1)))
async def mark(tx: Transaction, body: Mark) -> None:
    """Count one effect; some tries fail, after a time in which the process may be killed."""
    tx.add(marks[body.text], 1)
    await asyncio.sleep(random.random() / 50)
    if random.random() < 1 / 3:
        raise OutOfOrder(body.text)


@later.command
async def begin(tx: Transaction, body: Mark) -> None:
    """Send a mark with the commit, for later."""
    tx.send(mark, body, after=timedelta(milliseconds=random.randrange(2000)))


@later.every("* * * * * *")
async def tick(tx: Transaction, tick: Tick) -> None:
    """Count the effects of each second."""
    tx.add(ticks[str(tick.at // 1000)], 1)
    if tick.missed:
        tx.add(missed, tick.missed)


if __name__ == "__main__":
    asyncio.run(work(later))
