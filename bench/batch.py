"""Batches: POST of 1000 new 64-bit numbers to two replicas, beside the engine alone, once and on each core.

An earlier release of the mesh takes its turn, too: it shows on any machine what the changes since then cost.

Then 100 000 numbers with a short ttl, to see whether memory stays constant.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.environments import ROOT, THIS, Release, release
from bench.load_http import load, posting, try_load
from bench.processes import child, resident_bytes
from bench.record import Ratio, Record, Settings
from bench.replicas import Mesh, replicas
from bench.report import table
from bench.request_reply import EARLIER, is_there
from bench.spread import Spread, interleaved, per_round

ITEMS = 1000
PROCESSES = 2
WARM_UP_S = 1.0
#: Concurrent requests for each replica.
CONNECTIONS = 4
RUN = 100_000
SHORT_TTL_S = 1


def engine(settings: Settings, processes: int = 1) -> tuple[float, float]:
    """Run the engine alone in several processes; return numbers a second and processor time of one, in us."""
    argv = [sys.executable, "-m", "bench.engine", str(settings.seconds)]
    with ExitStack() as stack:
        started = [stack.enter_context(child(argv, folder=ROOT, listen=True)) for _ in range(processes)]
        told = [tuple(map(float, process.stdout.read().split())) for process in started if process.stdout]
        return sum(rate for rate, _ in told), statistics.mean(cost for _, cost in told)


def mesh(settings: Settings, of: Release = THIS) -> tuple[float, float]:
    """Send the numbers through POST /values; return the rate and the processor time, that of Redis included."""
    with replicas(PROCESSES, classes="AB", durability=settings.durability, release=of) as there:
        environ = posting(ITEMS, "AB")
        try_load("post.lua", there.ports, environ, seconds=WARM_UP_S, connections=CONNECTIONS)
        found = load(
            "post.lua",
            there.ports,
            environ,
            seconds=settings.seconds,
            connections=CONNECTIONS,
            watched=there.watched,
        )
        return ITEMS * found.rate, 1000 * sum(found.cpu_ms.values()) / ITEMS


def earlier(settings: Settings) -> tuple[float, float]:
    """Do the same with the earlier release."""
    return mesh(settings, release(EARLIER.name, EARLIER.commit))


CONTENDERS: tuple[tuple[str, Callable[[Settings], tuple[float, float]]], ...] = (
    ("engine", engine),
    ("engines", partial(engine, processes=PROCESSES)),
    ("mesh", mesh),
    ("earlier", earlier),
)


def long_run(settings: Settings) -> dict[str, float]:
    """Return memory in MB at the beginning, middle and end of a run of 100 000 numbers with a ttl of one second."""
    with replicas(PROCESSES, classes="AB", durability=settings.durability) as there:
        sent = 0
        memory: dict[str, float] = {}
        environ = posting(ITEMS, "AB", ttl=SHORT_TTL_S)
        for name, goal in (("beginning", RUN // 10), ("half-way", RUN // 2), ("end", RUN)):
            while sent < goal:
                sent += ITEMS * try_load("post.lua", there.ports, environ, seconds=2, connections=2).calls
            memory |= {f"{name}, {what}": value for what, value in resident(there).items()}
        memory["numbers"] = sent
        # Expired records disappear without any GET.
        time.sleep(SHORT_TTL_S + 3)
        memory["keys left"] = left(there)
        return memory


def resident(there: Mesh) -> dict[str, float]:
    """Return the memory in MB of the largest replica and of Redis's data."""
    used = there.server.redis().info("memory")["used_memory"]
    return {"replica": max(map(resident_bytes, there.pids)) / 1e6, "redis": used / 1e6}


def left(there: Mesh) -> int:
    """Return the number of keys of /values in all databases."""
    count = 0
    for space in there.server.redis().info("keyspace"):
        with there.server.redis() as client:
            client.select(int(space[2:]))
            count += sum(1 for _ in client.scan_iter("*values:*", count=5000))
    return count


def measure(settings: Settings) -> Record:
    """Measure the engine and the mesh in turn, then the long run."""
    series: dict[str, list[float]] = {}
    contenders = [each for each in CONTENDERS if each[0] != "earlier" or is_there(EARLIER)]
    for number, (name, run) in interleaved(contenders, settings.rounds):
        rate, cost = run(settings)
        series.setdefault(name, []).append(rate)
        series.setdefault(f"{name}|cpu_us", []).append(cost)
        print(f"  round {number + 1} {name}: {rate:,.0f} numbers/s", file=sys.stderr)
    measured = {name: Spread.of(values) for name, values in series.items()}
    return Record("batch", settings, measured, ratios(series), facts=long_run(settings))


def ratios(series: Mapping[str, list[float]]) -> dict[str, Ratio]:
    found = {
        "numbers a second, mesh / the engine alone": Ratio.of(per_round(series["mesh"], series["engine"]), goal=0.5),
        "numbers a second, mesh / one engine on each core": Ratio.of(
            per_round(series["mesh"], series["engines"]), goal=0.5
        ),
        "processor time of a number, mesh with Redis / one engine on each core": Ratio.of(
            per_round(series["mesh|cpu_us"], series["engines|cpu_us"]), goal=2, more_is_better=False
        ),
    }
    if "earlier" in series:
        found |= {
            "numbers a second, mesh / its release of 2026-11-28": Ratio.of(
                per_round(series["mesh"], series["earlier"])
            ),
            "processor time of a number, mesh / its release of 2026-11-28": Ratio.of(
                per_round(series["mesh|cpu_us"], series["earlier|cpu_us"]), more_is_better=False
            ),
        }
    return found


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    labels = {
        "engine": "the engine alone",
        "engines": f"the engine alone, {PROCESSES} processes",
        "mesh": f"POST /values, {ITEMS} numbers each, {PROCESSES} replicas",
        "earlier": "the same, release of 2026-11-28",
    }
    rows = [
        [label, record.measured[name].text(), record.measured[f"{name}|cpu_us"].text(1)]
        for name, label in labels.items()
        if name in record.measured
    ]
    facts = record.facts
    stages = ("beginning", "half-way", "end")
    memory = [[what, *(f"{facts[f'{stage}, {what}']:.1f} MB" for stage in stages)] for what in ("replica", "redis")]
    run = (
        f"{facts['numbers']:,.0f} numbers that live for {SHORT_TTL_S} s, in one run; keys of /values left after it: "
        f"{facts['keys left']:.0f}."
    )
    return "\n\n".join(
        [
            table(["", "numbers/s", "CPU us a number"], rows),
            record.ratio_table(),
            run,
            table(["memory", *(f"at the {stage}" if stage != "half-way" else stage for stage in stages)], memory),
            record.circumstances(),
        ]
    )
