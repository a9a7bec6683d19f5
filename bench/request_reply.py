"""Request and reply: a handler stores one key and answers, with 1, 16 and 128 calls in flight.

Each turn has a fresh server, one process that calls and one that works. The turns of a round follow each other, and
each round begins with another contender. So other work on the machine disturbs all contenders alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.environments import PEERS, environment, release, version
from bench.plot import lines
from bench.processes import child, cpu_seconds
from bench.record import Ratio, Record, Settings
from bench.report import table
from bench.servers import Server, nats, valkey
from bench.spread import Spread, best_of, interleaved, per_round

LEVELS = (1, 16, 128)
WHAT = ("rate", "median_ms", "p99_ms", "cpu_ms")


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender and its settings."""

    name: str
    label: str
    settings: str
    environment: str | None = None
    distribution: str | None = None
    program: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    #: settings of the worker for levels at which others are better
    environ_at: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    on_nats: bool = False
    stores_in_redis: bool = True
    #: the commit of an earlier release of this repository, which runs with its own program
    commit: str = ""

    @property
    def python(self) -> Path:
        return environment(self.environment) if self.environment else Path(sys.executable)

    def launch(self) -> tuple[list[str | Path], dict[str, str]]:
        """Return the first words of its commands, and the environment variables. Raises LookupError."""
        if not self.commit or not self.environment:
            return [self.python, self.program], {**self.environ}
        found = release(self.environment, self.commit)
        program = found.folder / "bench" / "peers" / self.program
        return [found.python, program], {**self.environ, "PYTHONPATH": str(found.folder)}

    @property
    def title(self) -> str:
        if self.environment and self.distribution:
            return f"{self.label} {version(self.environment, self.distribution)}"
        return self.label


MESH = Contender(
    "mesh",
    "mesh",
    "one replica asks, one works; exactly-once commit, durable streams",
    program="with_mesh.py",
)
#: An earlier release of the mesh, which shows on any machine what the changes since then cost.
EARLIER = Contender(
    "earlier",
    "mesh, release of 2026-11-28",
    "the same",
    "earlier",
    program="with_mesh.py",
    commit="20b09c7",
)
REDIS_PEERS = (
    Contender(
        "faststream",
        "FastStream",
        "`broker.request` to a list (of channel, list, stream the quickest), `polling_interval=0.01`, "
        "`max_connections=1000`, uvloop, hiredis",
        "faststream",
        "faststream",
        "with_faststream.py",
    ),
    Contender(
        "celery",
        "Celery",
        "`solo` pool (of solo, threads, prefork the quickest), `worker_prefetch_multiplier=128`, no events, "
        "gossip, mingle or heartbeat; result `interval=0.001`; a window of calls, as its client blocks; hiredis",
        "celery",
        "celery",
        "with_celery.py",
    ),
    Contender(
        "taskiq",
        "taskiq-redis",
        "`RedisStreamBroker`, one worker process, `max_async_tasks=256`, `--no-parse`, results kept until "
        "read, `check_interval` 1 ms (1 in flight) and 2 ms; uvloop, hiredis",
        "taskiq",
        "taskiq-redis",
        "with_taskiq.py",
    ),
    Contender(
        "arq",
        "arq",
        "`max_jobs=256`, worker's `poll_delay` 2 ms (10 ms at 128), result's `poll_delay` 1, 5, 20 ms, "
        "`log_results=False`; uvloop, hiredis",
        "arq",
        "arq",
        "with_arq.py",
        environ_at={128: {"BENCH_ARQ_WORKER_DELAY": "0.01"}},
    ),
    Contender(
        "streaq",
        "streaQ",
        "`concurrency=128`, `max_connections=1000`, uvloop; its client library ends each subscription with a "
        "wait of 0.1 s that cannot be set",
        "streaq",
        "streaq",
        "with_streaq.py",
    ),
    Contender(
        "docket",
        "docket",
        "`concurrency=256`, `max_connections=1000`, `message_batch` and intervals as they come (shorter ones "
        "were slower); uvloop, hiredis",
        "docket",
        "pydocket",
        "with_docket.py",
    ),
)
CEILINGS = (
    Contender(
        "nats",
        "NATS, nothing stored",
        "nats-py on Debian's nats-server, queue group; the handler remembers in its own memory, nothing is "
        "durable; uvloop",
        "nats",
        "nats-py",
        "with_nats.py",
        on_nats=True,
        stores_in_redis=False,
    ),
    Contender(
        "nats_store",
        "NATS, stored in Redis",
        "the same, the handler stores with redis-py, up to 128 at a time",
        "nats",
        "nats-py",
        "with_nats.py",
        environ={"BENCH_STORE": "redis"},
        on_nats=True,
    ),
)
CONTENDERS = (MESH, EARLIER, *REDIS_PEERS, *CEILINGS)


class TurnFailed(RuntimeError):
    """A contender failed in its turn, or stored less than it answered."""


def turn(contender: Contender, settings: Settings) -> list[dict[str, Any]]:
    """Measure all levels of one contender, with the processor time a call of all its processes."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for level in settings.levels or LEVELS:
        groups.setdefault(tuple(contender.environ_at.get(level, {}).items()), []).append(level)
    return [
        found for environ, levels in groups.items() for found in run_levels(contender, settings, dict(environ), levels)
    ]


def run_levels(
    contender: Contender, settings: Settings, environ: Mapping[str, str], levels: list[int]
) -> list[dict[str, Any]]:
    """Measure some levels with one start of worker and client, on fresh servers."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey(settings.durability))
        broker = stack.enter_context(nats()) if contender.on_nats else server
        program, own = contender.launch()
        values = {
            **own,
            **environ,
            "BENCH_REDIS_URL": server.url,
            "BENCH_NATS_URL": broker.url,
            "BENCH_LEVELS": ",".join(map(str, levels)),
            "BENCH_SECONDS": str(settings.seconds),
        }
        worker = stack.enter_context(child([*program, "worker"], environ=values, folder=PEERS))
        client = stack.enter_context(child([*program, "client"], environ=values, folder=PEERS, listen=True))
        pids = [worker.pid, client.pid, *{server.pid, broker.pid}]
        found, calls = follow(client.stdout, pids, contender.name)
        if contender.stores_in_redis:
            check_stored(server, found, calls, contender.name)
        return found


def follow(said: Any, pids: list[int], name: str) -> tuple[list[dict[str, Any]], int]:
    """Read the client's output until its end, and add the processor time of each level."""
    found: list[dict[str, Any]] = []
    before = 0.0
    for line in said:
        fact = json.loads(line)
        if fact["event"] == "begin":
            before = cpu_seconds(pids)
        elif fact["event"] == "failure":
            print(f"  {name}: {fact['error']}", file=sys.stderr)
        elif fact["event"] == "end":
            spent = cpu_seconds(pids) - before
            found.append({**fact, "cpu_ms": 1000 * spent / max(1, fact["calls"])})
        elif fact["event"] == "done":
            return found, fact["calls"]
    raise TurnFailed(f"{name}: the client ended before it was done")


def check_stored(server: Server, found: list[dict[str, Any]], calls: int, name: str) -> None:
    """Check that every answered call was stored, as each contender promises here. Raises TurnFailed."""
    answered = sum(level["calls"] for level in found)
    databases = [int(space[2:]) for space in server.redis().info("keyspace")]
    stored = 0
    for database in databases:
        with server.redis() as client:
            client.select(database)
            stored += sum(1 for _ in client.scan_iter("*stored:*", count=5000))
    if stored < answered:
        raise TurnFailed(f"{name}: {answered} answers, {stored} stored, {calls} asked")


def measure(settings: Settings) -> Record:
    """Measure all contenders in turn, round by round."""
    chosen = [one for one in CONTENDERS if (not settings.only or one.name in settings.only) and is_there(one)]
    series: dict[str, list[float]] = {}
    for number, contender in interleaved(chosen, settings.rounds):
        for level in turn(contender, settings):
            name = f"{contender.name}|{level['in_flight']}"
            for what in WHAT:
                series.setdefault(f"{name}|{what}", []).append(level[what] or 0.0)
            print(f"  round {number + 1} {name}: {level['rate']:,.0f}/s", file=sys.stderr)
    name = "request_reply" if settings.durability == "off" else f"request_reply_{settings.durability}"
    measured = {key: Spread.of(values) for key, values in series.items()}
    return Record(name, settings, measured, dict(found_ratios(series)))


def is_there(contender: Contender) -> bool:
    """Return whether a contender can run here; print why an earlier release cannot."""
    try:
        contender.launch()
    except LookupError as error:
        print(f"  {contender.name} is left out: {error}", file=sys.stderr)
        return False
    return True


def found_ratios(series: Mapping[str, list[float]]) -> Iterator[tuple[str, Ratio]]:
    """Return the ratios of those pairs whose two sides were measured."""
    for title, ours, theirs, goal in goals(series):
        if ours in series and theirs:
            less = ours.endswith("_ms")
            yield title, Ratio.of(per_round(series[ours], theirs), goal=goal, more_is_better=not less)


def goals(series: Mapping[str, list[float]]) -> Iterator[tuple[str, str, list[float], float | None]]:
    """Return title, our series, theirs, and the goal of each ratio."""
    best = best_redis_peer(series, "128|rate", max)
    soonest = best_redis_peer(series, "1|median_ms", min)
    yield "rate at 128 in flight, mesh / best Redis peer", "mesh|128|rate", best, 20
    yield "median latency at 1 in flight, mesh / best Redis peer", "mesh|1|median_ms", soonest, 0.2
    yield "rate at 128 in flight, mesh / NATS, nothing stored", "mesh|128|rate", series.get("nats|128|rate", []), 0.6
    cheapest = best_redis_peer(series, "128|cpu_ms", min)
    yield "processor time a call at 128, mesh / best Redis peer", "mesh|128|cpu_ms", cheapest, None
    nats_cpu = series.get("nats|128|cpu_ms", [])
    yield "processor time a call at 128, mesh / NATS, nothing stored", "mesh|128|cpu_ms", nats_cpu, None
    for level in LEVELS:
        before = series.get(f"earlier|{level}|rate", [])
        yield f"rate at {level} in flight, mesh / its release of 2026-11-28", f"mesh|{level}|rate", before, None
    stored = series.get("nats_store|128|rate", [])
    yield "rate at 128 in flight, mesh / NATS, stored in Redis", "mesh|128|rate", stored, None


def best_redis_peer(
    series: Mapping[str, list[float]], what: str, choose: Callable[[Iterable[float]], float]
) -> list[float]:
    """Return the best figure of the Redis peers in each round."""
    rows = [series[f"{peer.name}|{what}"] for peer in REDIS_PEERS if f"{peer.name}|{what}" in series]
    return best_of(rows, choose)


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    levels = record.settings.levels or LEVELS
    there = [one for one in CONTENDERS if f"{one.name}|{levels[0]}|rate" in record.measured]
    curves = {one.label: [record.measured[f"{one.name}|{level}|rate"] for level in levels] for one in there}
    path = plots / f"{record.name}.svg"
    lines(path, curves, list(levels), "calls in flight", "calls a second", emphasised=MESH.label)
    parts = [
        figures(record, there, levels),
        f"![calls a second over calls in flight]({plots.name}/{path.name})",
        record.ratio_table(),
        record.circumstances(),
        table(["", "settings"], [[one.title, one.settings] for one in there]),
    ]
    return "\n\n".join(part for part in parts if part)


def figures(record: Record, there: Sequence[Contender], levels: Sequence[int]) -> str:
    """Return the table of rates, latencies and costs."""
    header = ["", *(f"calls/s, {n} in flight" for n in levels), *(f"median ms, {n}" for n in levels)]
    rows = [
        [one.title]
        + [record.measured[f"{one.name}|{level}|rate"].text() for level in levels]
        + [record.measured[f"{one.name}|{level}|median_ms"].text(2) for level in levels]
        + [record.measured[f"{one.name}|{levels[-1]}|cpu_ms"].text(3)]
        for one in there
    ]
    return table([*header, f"CPU ms a call, {levels[-1]}"], rows)
