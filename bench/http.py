"""HTTP: what the mesh adds to a request. POST of one new 64-bit number to one replica, GET with ten results from four.

The comparison is a bare Quart route in one process, with the same settings and the same JSON in and out: on an
unchanged Hypercorn, and on our server with our class of application.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.environments import ROOT
from bench.load_http import CONNECTIONS, Outcome, getting, load, posting
from bench.processes import child, until
from bench.record import Ratio, Record, Settings
from bench.replicas import Mesh, is_ready, plant, replicas
from bench.report import table
from bench.spread import Spread, interleaved, per_round
from quart_app.local.ports import free_port

GET_REPLICAS = 4
WARM_UP_S = 1.0
PRIMES = [2147483659]


class NotStored(RuntimeError):
    """Fewer values are stored than were answered."""


@contextmanager
def bare(kind: str = "hypercorn") -> Iterator[tuple[int, int]]:
    """Run the bare application on one of the servers of `bench.bare`; yield its port and process."""
    port = free_port()
    with child([sys.executable, "-m", "bench.bare", str(port), kind], folder=ROOT) as process:
        until(lambda: is_ready(port), 30, "the bare application is ready")
        yield port, process.pid


def bare_post(settings: Settings, kind: str = "hypercorn") -> Outcome:
    with bare(kind) as (port, pid):
        load("post.lua", [port], posting(), seconds=WARM_UP_S)
        return load("post.lua", [port], posting(), seconds=settings.seconds, watched={"replicas": [pid]})


def bare_get(settings: Settings, kind: str = "hypercorn") -> Outcome:
    with bare(kind) as (port, pid):
        load("get.lua", [port], getting(PRIMES), seconds=WARM_UP_S)
        return load("get.lua", [port], getting(PRIMES), seconds=settings.seconds, watched={"replicas": [pid]})


def mesh_post(settings: Settings) -> Outcome:
    with replicas(1, classes="A", durability=settings.durability) as mesh:
        load("post.lua", mesh.ports, posting(), seconds=WARM_UP_S)
        found = load("post.lua", mesh.ports, posting(), seconds=settings.seconds, watched=mesh.watched)
        check_stored(mesh, found.calls)
        return found


def check_stored(mesh: Mesh, least: int) -> None:
    """Check that each answered value has one record. Raises NotStored."""
    stored = sum(1 for _ in mesh.server.redis().scan_iter("shared:values:where:*", count=5000))
    if stored < least:
        raise NotStored(f"{least} values were answered, but {stored} are stored")


def mesh_get(settings: Settings) -> Outcome:
    with replicas(GET_REPLICAS, classes="ABCD", durability=settings.durability) as mesh:
        primes = plant(mesh, "ABCD")
        load("get.lua", mesh.ports, getting(primes), seconds=WARM_UP_S)
        return load("get.lua", mesh.ports, getting(primes), seconds=settings.seconds, watched=mesh.watched)


@dataclass(frozen=True, slots=True)
class Turn:
    name: str
    label: str
    run: Callable[[Settings], Outcome]


TURNS = (
    Turn("post|bare", "POST, bare Quart route, unchanged Hypercorn", bare_post),
    Turn("post|ours", "POST, bare Quart route, our server", partial(bare_post, kind="application")),
    Turn("post|mesh", "POST /values, one new 64-bit number, one replica", mesh_post),
    Turn("get|bare", "GET, bare Quart route, unchanged Hypercorn", bare_get),
    Turn("get|ours", "GET, bare Quart route, our server", partial(bare_get, kind="application")),
    Turn("get|mesh", "GET /values/{prime}, ten results, four replicas", mesh_get),
)


def measure(settings: Settings) -> Record:
    """Measure all turns, round by round."""
    series: dict[str, list[float]] = {}
    chosen = [one for one in TURNS if not settings.only or one.name in settings.only]
    for number, one in interleaved(chosen, settings.rounds):
        found = one.run(settings)
        for what, value in figures(found).items():
            series.setdefault(f"{one.name}|{what}", []).append(value)
        print(f"  round {number + 1} {one.name}: {found.rate:,.0f}/s", file=sys.stderr)
    measured = {name: Spread.of(values) for name, values in series.items()}
    return Record("http", settings, measured, ratios(series))


def figures(found: Outcome) -> dict[str, float]:
    """Return the numbers of a turn by name."""
    costs = {f"cpu_ms_{name}": cost for name, cost in found.cpu_ms.items()}
    return {"rate": found.rate, "median_ms": found.median_ms, "p99_ms": found.p99_ms, **costs}


#: title -> (turn, turn that it is compared with, figure, goal)
RATIOS: dict[str, tuple[str, str, str, float | None]] = {
    "POST, rate, mesh / bare": ("post|mesh", "post|bare", "rate", 0.6),
    "GET, rate, mesh / bare": ("get|mesh", "get|bare", "rate", 0.4),
    "POST, rate, mesh / bare on our server": ("post|mesh", "post|ours", "rate", 0.75),
    "GET, rate, mesh / bare on our server": ("get|mesh", "get|ours", "rate", 0.7),
    "POST, processor time of the application, mesh / bare": ("post|mesh", "post|bare", "cpu_ms_replicas", None),
    "GET, processor time of all four replicas, mesh / bare": ("get|mesh", "get|bare", "cpu_ms_replicas", None),
    "POST, processor time, bare on our server / unchanged Hypercorn": (
        "post|ours", "post|bare", "cpu_ms_replicas", 0.77
    ),
    "GET, processor time, bare on our server / unchanged Hypercorn": (
        "get|ours", "get|bare", "cpu_ms_replicas", 0.77
    ),
}  # fmt: skip


def ratios(series: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Return rates and processor times as ratios of two turns of the same round."""
    return {
        title: Ratio.of(
            per_round(series[f"{above}|{what}"], series[f"{below}|{what}"]), goal=goal, more_is_better=what == "rate"
        )
        for title, (above, below, what, goal) in RATIOS.items()
        if f"{above}|{what}" in series and f"{below}|{what}" in series
    }


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    rows = []
    for one in TURNS:
        there = {what: record.measured.get(f"{one.name}|{what}") for what in ("rate", "median_ms", "p99_ms")}
        costs = [record.measured.get(f"{one.name}|cpu_ms_{name}") for name in ("replicas", "redis")]
        if there["rate"]:
            digits = {"rate": 0, "median_ms": 1, "p99_ms": 1}
            cells = [value.text(digits[what]) for what, value in there.items() if value]
            rows.append([one.label, *cells, *(cost.text(3) if cost else "" for cost in costs)])
    header = ["", "requests/s", "median ms", "p99 ms", "CPU ms a request, app", "CPU ms a request, Redis"]
    client = f"{CONNECTIONS} connections, by wrk, whose own share is not in the CPU columns."
    return "\n\n".join([table(header, rows), record.ratio_table(), f"{record.circumstances()} {client}"])
