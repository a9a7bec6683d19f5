"""What typed operations cost: the processor time of a call, beside the same call by name with dicts.

One process has the replica that calls and the one that works, and reads its own processor time. The rounds are short
and take turns, so other work on the machine, and the luck of a process with its memory, meet both sides alike. In each
round the calls by name are measured twice: their ratio to themselves shows how fine this measurement is. To each side
comes the processor time of the server, which is the same for both.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

from msgspec import Struct
from pydantic import SecretStr

from bench.processes import cpu_seconds
from bench.record import Ratio, Record, Settings
from bench.report import table
from bench.servers import Server, valkey
from bench.spread import Spread, interleaved, per_round
from mesh import Class, Mesh, MeshSettings, Operations, RedisSettings, Transaction, join
from mesh.raw import Effects, Request, Store, Worker

#: The ways to call; "again" is by name, once more.
WAYS = ("named", "typed", "again")
#: Rounds for one of the settings: they are short, and the median needs many.
ROUNDS = 25
CALLS, IN_FLIGHT = 768, 128

Call = Callable[[int], Awaitable[int]]

by_name = Worker()
typed_table = Operations("bench")
numbers = typed_table.values("stored", int, int)


@by_name.handles("bench.store")
async def store(request: Request, store: Store, transaction: Effects) -> dict[str, int]:
    number = request.body["number"]
    transaction.set(f"stored:{number}", number)
    return {"number": number}


class Number(Struct):
    """The body of a typed call, and its reply."""

    number: int


@typed_table.command
async def put(tx: Transaction, body: Number) -> Number:
    tx.set(numbers[body.number], body.number)
    return Number(body.number)


def ways_of(mesh: Mesh) -> dict[str, Call]:
    """Return the ways to call."""
    to, deadline = Class("B"), timedelta(seconds=60)

    async def named(number: int) -> int:
        return int((await mesh.replica.call(to, "bench.store", {"number": number}, deadline_ms=60_000))["number"])

    async def typed(number: int) -> int:
        return (await mesh.call(put, Number(number), to=to, deadline=deadline)).number

    return {"named": named, "typed": typed, "again": named}


async def spend(call: Call, calls: int, in_flight: int) -> float:
    """Make calls, and return the processor time of each, in µs."""
    waiting = iter(range(calls))

    async def loop() -> None:
        for number in waiting:
            if await call(number) != number:
                raise ValueError(f"asked {number}, and got another answer")

    began = time.process_time()
    await asyncio.gather(*(loop() for _ in range(in_flight)))
    return 1e6 * (time.process_time() - began) / calls


async def alternate(server: Server, order: Sequence[str], calls: int = CALLS) -> dict[str, list[float]]:
    """Return the processor time of a call in each round of each way, and that of the server as "server"."""
    settings = {}
    for cls in "AB":
        os.environ["MESH_CLASS"] = cls
        settings[cls] = MeshSettings(redis=RedisSettings(url=SecretStr(server.url)))
    del os.environ["MESH_CLASS"]
    async with join(settings=settings["A"]) as mesh, join(typed_table, by_name, settings=settings["B"]):
        ways = ways_of(mesh)
        for way in WAYS:
            await spend(ways[way], calls, IN_FLIGHT)
        before = cpu_seconds([server.pid])
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in order:
            found[way].append(await spend(ways[way], calls, IN_FLIGHT))
        found["server"] = [1e6 * (cpu_seconds([server.pid]) - before) / (calls * len(order))]
        return found


def measure(settings: Settings) -> Record:
    """Measure the three ways in turn, in short rounds. Of each ROUNDS of them, the quickest tenth is compared."""
    order = [way for _, way in interleaved(WAYS, settings.rounds * ROUNDS)]
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    with valkey() as server:
        series = asyncio.run(alternate(server, order))
    for way in WAYS:
        series[way] = [spent + series["server"][0] for spent in series[way]]
    named = [sum(pair) / 2 for pair in zip(series["named"], series["again"], strict=True)]
    rows = {
        "processor time a call at 128, typed / named operations": (per_round(series["typed"], named), 1.03),
        "the same, named operations beside themselves": (per_round(series["again"], series["named"]), None),
    }
    ratios = {title: Ratio.of(values, goal=goal, more_is_better=False) for title, (values, goal) in rows.items()}
    parts = [slice(first, first + ROUNDS) for first in range(0, len(named), ROUNDS)]
    best = [quickest(series["typed"][part]) / quickest(named[part]) for part in parts]
    ratios["typed / named operations, the quickest tenth of the rounds of each"] = Ratio.of(best, more_is_better=False)
    facts = {title: interval(values) for title, (values, _) in rows.items()}
    measured = {way: Spread.of(values) for way, values in series.items()}
    for title, (low, high) in facts.items():
        median = ratios[title].spread.median
        print(f"  {title}: {median:.3f}, and with 95 % it lies within {low:.3f}–{high:.3f}", file=sys.stderr)
    return Record("typed", settings, measured, ratios, facts)


def quickest(values: Sequence[float]) -> float:
    """Return the mean of the lowest tenth: what other work on the machine disturbed least."""
    lowest = sorted(values)[: max(1, len(values) // 10)]
    return sum(lowest) / len(lowest)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return where the median lies with a probability of about 95 %: between two of the ordered values."""
    ordered, count = sorted(values), len(values)
    off = round(0.98 * count**0.5)
    return ordered[max(0, count // 2 - off)], ordered[min(count - 1, count // 2 + off)]


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    titles = {
        "named": "by name, dicts", "typed": "typed, msgspec Structs", "again": "by name, once more",
        "server": "of these the server",
    }  # fmt: skip
    rows = [[titles[way], record.measured[way].text(1)] for way in (*WAYS, "server")]
    known = [f"{title}: {low:.3f}–{high:.3f}" for title, (low, high) in record.facts.items()]
    return "\n\n".join(
        [
            table([f"call, {IN_FLIGHT} in flight", "processor time, µs"], rows),
            record.ratio_table(),
            f"The medians lie within (95 %): {'; '.join(known)}. {record.settings.rounds * ROUNDS} rounds of "
            f"{CALLS} calls of each kind. {record.circumstances()}",
        ]
    )
