"""Scale of the store: GET with ten results while 10^3 … 10^6 values are stored, and the memory of a value.

A mesh of two replicas runs for each size; each round measures them in turn.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from bench.load_http import Outcome, getting, load, posting, try_load
from bench.plot import lines
from bench.record import Ratio, Record, Settings
from bench.replicas import Mesh, plant, replicas
from bench.report import table
from bench.spread import Spread, interleaved, per_round

SIZES = (1_000, 10_000, 100_000)
#: The long form; filling it through HTTP takes minutes.
FULL = (*SIZES, 1_000_000)
ITEMS = 1000
TTL_S = 7200
CONNECTIONS = 4


def fill(mesh: Mesh, size: int) -> float:
    """Store random 64-bit numbers through POST; return the bytes of Redis's memory a value."""
    client = mesh.server.redis()
    before = client.info("memory")["used_memory"]
    items = min(ITEMS, size)
    sent = 0
    while sent < size:
        seconds = 2 if size - sent < 50_000 else 5
        sent += (
            items * try_load("post.lua", mesh.ports, posting(items, "AB", TTL_S), seconds=seconds, connections=2).calls
        )
    stored = sum(1 for _ in client.scan_iter("shared:values:where:*", count=10_000))
    used = client.info("memory")["used_memory"]
    return float(used - before) / stored


def measure(settings: Settings) -> Record:
    """Fill a mesh for each size, then measure them in turn."""
    sizes = settings.levels or (FULL if settings.full else SIZES)
    series: dict[str, list[float]] = {}
    with ExitStack() as stack:
        meshes: dict[int, tuple[Mesh, list[int]]] = {}
        for size in sizes:
            mesh = stack.enter_context(replicas(2, classes="AB", durability=settings.durability))
            series[f"{size}|bytes"] = [fill(mesh, size)]
            meshes[size] = mesh, plant(mesh, "AB", ttl=TTL_S)
            print(f"  {size:,} values: {series[f'{size}|bytes'][0]:.0f} bytes each", file=sys.stderr)
        for number, size in interleaved(sizes, settings.rounds):
            mesh, primes = meshes[size]
            found = ask(mesh, primes, settings)
            for what, value in (("rate", found.rate), ("median_ms", found.median_ms), ("cpu_ms", cost(found))):
                series.setdefault(f"{size}|{what}", []).append(value)
            print(f"  round {number + 1} {size}: {found.rate:,.0f}/s", file=sys.stderr)
    measured = {name: Spread.of(values) for name, values in series.items()}
    return Record("store_scale", settings, measured, ratios(series, sizes), facts={"sizes": list(sizes)})


def ask(mesh: Mesh, primes: list[int], settings: Settings) -> Outcome:
    return load(
        "get.lua",
        mesh.ports,
        getting(primes),
        seconds=settings.seconds,
        connections=CONNECTIONS,
        watched=mesh.watched,
    )


def cost(found: Outcome) -> float:
    """Return the processor time of a GET, in ms, without the client's."""
    return sum(found.cpu_ms.values())


def ratios(series: dict[str, list[float]], sizes: tuple[int, ...]) -> dict[str, Ratio]:
    """Return the ratios of the largest store to the smallest."""
    small, large = sizes[0], sizes[-1]
    return {
        f"{title} of a GET, {large:,} values / {small:,}": Ratio.of(
            per_round(series[f"{large}|{what}"], series[f"{small}|{what}"]), goal=1.3, more_is_better=False
        )
        for what, title in (("median_ms", "median time"), ("cpu_ms", "processor time"))
    }


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    sizes = record.facts["sizes"]
    rows = [
        [
            f"{size:,}",
            record.measured[f"{size}|rate"].text(),
            record.measured[f"{size}|median_ms"].text(2),
            record.measured[f"{size}|cpu_ms"].text(3),
            f"{record.measured[f'{size}|bytes'].median:,.0f}",
        ]
        for size in sizes
    ]
    path = plots / "store_scale.svg"
    curve = {"CPU ms a GET": [record.measured[f"{size}|cpu_ms"] for size in sizes]}
    lines(path, curve, sizes, "values stored", "ms", from_zero=True)
    header = ["values stored", "GET/s", "median ms", "CPU ms a GET", "bytes a value"]
    return "\n\n".join(
        [
            table(header, rows),
            f"![processor time of a GET over values stored]({plots.name}/{path.name})",
            record.ratio_table(),
            f"{record.circumstances()} {CONNECTIONS} connections. Bytes: growth of Redis's `used_memory` by what was "
            "posted, over the number of records; it holds the record, the index of its primes, its expiry and its "
            "place.",
        ]
    )
