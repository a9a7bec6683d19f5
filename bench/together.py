"""Elliptic curves on one number: one process, two processes of a replica, and two replicas with one process each.

    python -m bench.together

When curves find a factor is a matter of luck, so this measures how fast they get on: the sum of the bounds B1 of the
curves that were run, on a number in which nobody finds a factor. The time begins when the number is posted. So it
contains the second before help is asked for, and all that processes wait for. One process finds a factor of 25 digits
after about as long.

Where other programs use the machine, two processes share what is left, and no ratio of times would be true. So the work
is related to processor time, and the time for which processes have a slice to that which has passed: their product is
the work a second of processes that have a core each.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import gmpy2
from prometheus_client import CollectorRegistry

from bench import slices
from bench.report import table
from bench.servers import valkey
from bench.slices import Done
from bench.spread import Spread, interleaved, per_round
from mesh.raw import Replica
from mesh.testing import MeshKit
from quart_app.values import child, help
from quart_app.values.factorise import Composite, Factoring
from quart_app.values.metrics import FactorMetrics
from quart_app.values.pool import FactorPool

ROUNDS, SECONDS = 3, 50.0
DIGITS = 125
ALONE = "one process"
#: name: replicas, and processes of each
CASES = {ALONE: (1, 1), "two processes": (1, 2), "two replicas, one process each": (2, 1)}


@dataclass(frozen=True, slots=True)
class Found:
    """What processes did in some seconds.

    `processes` is how many had a slice on average. `speed` is the work of one of them in a second of processor time.
    """

    processes: float
    speed: float

    @classmethod
    def of(cls, done: list[Done], seconds: float) -> Found:
        cpu_s = sum(each.cpu_s for each in done)
        return cls(sum(each.ended_s - each.begun_s for each in done) / seconds, sum(each.work for each in done) / cpu_s)


def number() -> int:
    """Return a product of two primes of half the digits."""
    chance = random.Random(DIGITS)
    sizes = DIGITS // 2, DIGITS - DIGITS // 2
    return math.prod(int(gmpy2.next_prime(chance.randrange(4 * 10 ** (n - 1), 9 * 10 ** (n - 1)))) for n in sizes)


async def pools(stack: AsyncExitStack, kit: MeshKit, replicas: int, processes: int) -> list[FactorPool]:
    """Open the pools of some replicas of a class."""
    joined: list[Replica] = []
    opened: list[FactorPool] = []
    for place in range(replicas):

        def here(place: int = place) -> Replica:
            return joined[place]

        metrics = FactorMetrics(CollectorRegistry())
        pool = FactorPool(processes=processes, metrics=metrics, help_from_others=help.HelpFromOthers(here))
        opened.append(await stack.enter_async_context(pool))
        joined.append((await kit.start(help.help_worker(pool.help_for_others, processes, here), class_="A")).replica)
    return opened


async def compute(pool: FactorPool, posted: int, seconds: float) -> None:
    """Compute a number for so long."""
    task = asyncio.create_task(pool.factorise(posted, 10 * seconds))
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait([task])


async def measured(replicas: int, processes: int, lines: Path) -> Found:
    """Return what the processes did from the post of the number on."""
    posted = number()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(valkey())
        kit = await stack.enter_async_context(MeshKit(replicas=0, redis=server.url, lease_ttl_ms=60_000))
        first, *others = await pools(stack, kit, replicas, processes)
        # Start the processes.
        await compute(first, posted, 1)
        for other in others:
            await other.help_for_others.run_curves(Factoring(posted, (), (Composite(posted),)), processes, 0.2)
        await asyncio.sleep(2)
        begun_s = time.monotonic()
        await compute(first, posted, SECONDS)
        ended_s = begun_s + SECONDS
    return Found.of(
        [each for each in slices.read(lines) if begun_s <= each.begun_s and each.ended_s <= ended_s], SECONDS
    )


async def main() -> None:
    found: dict[str, list[Found]] = {name: [] for name in CASES}
    child.advance = slices.advance
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "slices"
        os.environ[slices.FILE] = str(lines)
        for _, name in interleaved(list(CASES), ROUNDS):
            found[name].append(await measured(*CASES[name], lines))
    rates = {name: [each.processes * each.speed for each in rounds] for name, rounds in found.items()}
    rows = [
        [
            name,
            Spread.of([each.processes for each in found[name]]).text(2),
            Spread.of([each.speed for each in found[name]]).text(),
            Spread.of(per_round(rates[name], rates[ALONE])).text(2),
        ]
        for name in CASES
    ]
    header = ["curves on one number", "processes that compute", "work a second of processor time", "times one process"]
    print(table(header, rows))


if __name__ == "__main__":
    asyncio.run(main())
