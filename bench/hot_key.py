"""One key that many requests read and write at once: how often they run, and how long that takes.

Beside turns there is the same mesh without them: after a conflict each request runs again at once.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bench.record import Ratio, Record, Settings
from bench.report import table
from bench.servers import valkey
from bench.spread import Spread, interleaved, per_round
from mesh import Operations, Transaction
from mesh.requests.turns import Turns
from mesh.testing import MeshKit

DEADLINE = timedelta(seconds=20)
#: The requests at one key, and the replicas that work on them.
CASES = ((128, 1), (256, 1), (400, 1), (400, 4))
WAYS = ("turns", "at once")
WHAT = ("seconds", "runs", "answered")

counter = Operations("bench")
own = counter.value("own", int, 0)
common = counter.value("common", int, 0, shared=True)


@counter.command
async def add_own(tx: Transaction) -> int:
    """Read, add one, write, in the replica's own database."""
    tx.set(own, await tx.get(own) + 1)
    return await tx.get(own)


@counter.command
async def add_common(tx: Transaction) -> int:
    """Read, add one, write, in a key of all replicas."""
    tx.set(common, await tx.get(common) + 1)
    return await tx.get(common)


class UpdateLost(RuntimeError):
    """Fewer updates are there than were answered."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of the requests of one case."""

    seconds: float
    runs: int
    answered: int


@contextmanager
def no_turns() -> Iterator[None]:
    """Let each request run again at once after a conflict."""
    take = Turns.take
    Turns.take = lambda turns, work, key: turns._begin(work)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Turns.take = take  # type: ignore[method-assign]


async def contend(requests: int, replicas: int, deadline: timedelta = DEADLINE) -> Found:
    """Send all requests at once, and count. Raises UpdateLost."""
    op, key = (add_own, own) if replicas == 1 else (add_common, common)
    with valkey() as server:
        async with MeshKit(counter, replicas=replicas, redis=server.url) as kit:
            began = time.perf_counter()
            calls = (kit[number % replicas].call(op, deadline=deadline) for number in range(requests))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            took = time.perf_counter() - began
            numbers = [answer for answer in answers if isinstance(answer, int)]
            if len(set(numbers)) < len(numbers) or await kit.read(key, database=1) < len(numbers):
                raise UpdateLost(f"{len(numbers)} were answered, and the key has {await kit.read(key, database=1)}")
            return Found(took, kit.ran(op), len(numbers))


def one(requests: int, replicas: int, way: str) -> Found:
    """Measure one case."""
    if way == "turns":
        return asyncio.run(contend(requests, replicas))
    with no_turns():
        return asyncio.run(contend(requests, replicas))


def measure(settings: Settings) -> Record:
    """Measure all cases with and without turns, round by round."""
    chosen = [(case, way) for case in CASES for way in WAYS if not settings.only or way in settings.only]
    series: dict[str, list[float]] = {}
    for number, ((requests, replicas), way) in interleaved(chosen, settings.rounds):
        found = one(requests, replicas, way)
        name = f"{requests}|{replicas}|{way}"
        for what in WHAT:
            series.setdefault(f"{name}|{what}", []).append(getattr(found, what))
        print(f"  round {number + 1} {name}: {found}", file=sys.stderr)
    ratios = {
        f"runs of {requests} requests at one key, {replicas} replica{'s' * (replicas > 1)}": Ratio.of(
            per_round(runs, [requests] * len(runs)), goal=4, more_is_better=False
        )
        for requests, replicas in CASES
        if (runs := series.get(f"{requests}|{replicas}|turns|runs"))
    }
    return Record("hot_key", settings, {name: Spread.of(values) for name, values in series.items()}, ratios)


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    header = ["requests at one key, all at once", *(f"{what}, {way}" for way in WAYS for what in WHAT)]
    rows = [
        [
            f"{requests}, one replica" if replicas == 1 else f"{requests}, a shared key, {replicas} replicas",
            *(_cell(record, f"{requests}|{replicas}|{way}|{what}") for way in WAYS for what in WHAT),
        ]
        for requests, replicas in CASES
    ]
    return "\n\n".join([table(header, rows), record.ratio_table(), record.circumstances()])


def _cell(record: Record, name: str) -> str:
    found = record.measured.get(name)
    return "" if found is None else found.text(2 if name.endswith("seconds") else 0)
