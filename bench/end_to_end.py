"""End to end: POST of new 64-bit numbers over REST, ours beside what one would build instead on the same Redis.

Each peer is a web process that checks the body, and a worker process that factors with FLINT and stores the results:
FastAPI (uvicorn, uvloop, httptools) with FastStream, arq or taskiq, and Flask (gunicorn, threads) with Celery. Ours is
one replica, which is one process. Everybody answers when the result is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.environments import PEERS, environment
from bench.load_http import LoadFailed, Outcome, load, posting, try_load
from bench.processes import child, until
from bench.record import Ratio, Record, Settings
from bench.replicas import is_ready, replicas
from bench.report import table
from bench.servers import valkey
from bench.spread import Spread, interleaved, per_round
from quart_app.local.ports import free_port

#: (connections, numbers in a request)
LEVELS = ((1, 1), (32, 1), (256, 1), (1, 100), (32, 100))
WARM_UP_S = 1.0
START_S = 60.0
OURS = "quart-mesh"
#: name -> how its web process is started, after its Python
PEER_WEBS = {
    "faststream": "uvicorn",
    "arq": "uvicorn",
    "taskiq": "uvicorn",
    "celery": "gunicorn",
}
LABELS = {
    OURS: "quart-mesh, one replica",
    "faststream": "FastAPI + FastStream",
    "arq": "FastAPI + arq",
    "taskiq": "FastAPI + taskiq",
    "celery": "Flask + Celery",
}


@dataclass(frozen=True, slots=True)
class There:
    """A contender that is ready: its port, and its processes, those of Redis included."""

    port: int
    pids: Sequence[int]


@contextmanager
def ours(connections: int, settings: Settings) -> Iterator[There]:
    with replicas(1, classes="A", durability=settings.durability) as mesh:
        yield There(mesh.ports[0], [*mesh.pids, mesh.server.pid])


def web(name: str, python: Path, port: int) -> list[str]:
    """Return the command of a peer's web process."""
    if PEER_WEBS[name] == "gunicorn":
        options = ["-k", "gthread", "-w", "2", "--threads", "128", "--keep-alive", "75", "-b", f"127.0.0.1:{port}"]
        return [str(python), "-m", "gunicorn", f"rest_{name}:web", *options]
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
    return [str(python), "-m", "uvicorn", f"rest_{name}:app", "--port", str(port), *options]


@contextmanager
def peer(name: str, connections: int, settings: Settings) -> Iterator[There]:
    """Run the two processes of a peer; its polling fits the number of connections."""
    python = environment(f"rest_{name}")
    with ExitStack() as stack:
        server = stack.enter_context(valkey(settings.durability))
        environ = {"BENCH_REDIS_URL": server.url, "BENCH_CONNECTIONS": str(connections)}
        port = free_port()
        worker = [str(python), f"rest_{name}.py"]
        started = [
            stack.enter_context(child(argv, environ=environ, folder=PEERS))
            for argv in (worker, web(name, python, port))
        ]
        until(lambda: is_ready(port), START_S, f"{name} is ready")
        yield There(port, [*(process.pid for process in started), server.pid])


CONTENDERS: dict[str, Callable[[int, Settings], object]] = {
    OURS: ours,
    **{name: partial(peer, name) for name in PEER_WEBS},
}


def measure_one(name: str, connections: int, items: int, settings: Settings) -> Outcome | None:
    """Put a load on a contender; return None if requests failed, which then has no figures."""
    with CONTENDERS[name](connections, settings) as there:  # type: ignore[attr-defined]
        ports, body = [there.port], posting(items)
        try:
            try_load("post.lua", ports, body, seconds=WARM_UP_S, connections=connections)
            watched = {"all": there.pids}
            return load("post.lua", ports, body, seconds=settings.seconds, connections=connections, watched=watched)
        except LoadFailed as error:
            print(f"  {name} with {connections} connections: {error}", file=sys.stderr)
            return None


def measure(settings: Settings) -> Record:
    """Measure all contenders at all levels, round by round."""
    series: dict[str, list[float]] = {}
    failed: dict[str, int] = {}
    names = [name for name in CONTENDERS if not settings.only or name in settings.only]
    levels = [level for level in LEVELS if not settings.levels or level[0] in settings.levels]
    turns = [(name, level) for level in levels for name in names]
    for number, (name, (connections, items)) in interleaved(turns, settings.rounds):
        key = f"{name}|{connections}|{items}"
        found = measure_one(name, connections, items, settings)
        if found is None:
            failed[key] = failed.get(key, 0) + 1
            continue
        figures = {
            "rate": found.rate,
            "median_ms": found.median_ms,
            "p99_ms": found.p99_ms,
            "cpu_ms": found.cpu_ms["all"],
        }
        for what, value in figures.items():
            series.setdefault(f"{key}|{what}", []).append(value)
        print(f"  round {number + 1} {key}: {found.rate:,.0f}/s, {found.median_ms:.2f} ms", file=sys.stderr)
    measured = {key: Spread.of(values) for key, values in series.items()}
    return Record("end_to_end", settings, measured, ratios(series), facts={"failed": failed})


#: (connections, numbers, figure, goal, whether more is better)
GOALS: tuple[tuple[int, int, str, float | None, bool], ...] = (
    (1, 1, "median_ms", 0.45, False),
    (32, 1, "rate", 3, True),
    (32, 1, "cpu_ms", 1 / 3, False),
    (256, 1, "p99_ms", 1 / 3, False),
    (32, 100, "rate", None, True),
    (32, 100, "cpu_ms", None, False),
)
WORDS = {"median_ms": "median latency", "rate": "requests a second", "cpu_ms": "processor time", "p99_ms": "p99"}


def ratios(series: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Return our figures as ratios to those of the best peer, which is the best one by its median."""
    found = {}
    for connections, items, what, goal, more in GOALS:
        mine = series.get(f"{OURS}|{connections}|{items}|{what}")
        theirs = [series.get(f"{name}|{connections}|{items}|{what}", []) for name in PEER_WEBS]
        peers = [values for values in theirs if mine and len(values) == len(mine)]
        if mine and peers:
            best = (max if more else min)(peers, key=lambda values: Spread.of(values).median)
            title = f"{WORDS[what]}, {connections} connections, {items} numbers each, quart-mesh / best peer"
            found[title] = Ratio.of(per_round(mine, best), goal=goal, more_is_better=more)
    return found


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    parts = []
    for connections, items in LEVELS:
        rows = []
        for name, label in LABELS.items():
            key = f"{name}|{connections}|{items}"
            cells = [record.measured.get(f"{key}|{what}") for what in ("rate", "median_ms", "p99_ms", "cpu_ms")]
            if all(cells):
                digits = (0, 2, 1, 3)
                rows.append([label, *(cell.text(places) for cell, places in zip(cells, digits, strict=True) if cell)])
            elif key in record.facts["failed"]:
                rows.append([label, "requests failed", "", "", ""])
        if rows:
            head = f"{connections} connections, {items} numbers each"
            parts.append(table([head, "requests/s", "median ms", "p99 ms", "CPU ms a request, all processes"], rows))
    return "\n\n".join([*parts, record.ratio_table(), record.circumstances()])
