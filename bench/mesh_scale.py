"""Scale of the mesh: the processor time of a POST and a GET with 1, 2, 4, 8 and 16 replicas, and a model of it.

More replicas on one machine add no processors. So this measures cost instead of speed, and computes from it what one
machine for each replica would do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.load_http import CONNECTIONS, Outcome, getting, load, posting
from bench.plot import lines
from bench.processes import cpu_seconds
from bench.record import Ratio, Record, Settings
from bench.replicas import Mesh, plant, replicas
from bench.report import table
from bench.spread import Spread, interleaved, per_round

COUNTS = (1, 2, 4, 8, 16)
CLASSES = "ABCD"
WARM_UP_S = 1.0
IDLE_S = 2.0
LOADS = ("post", "get")


def idle(pids: Sequence[int]) -> float:
    """Return the processor time of one of these processes while all are idle, in ms a second."""
    before, begun = cpu_seconds(pids), time.perf_counter()
    time.sleep(IDLE_S)
    return 1000 * (cpu_seconds(pids) - before) / (time.perf_counter() - begun) / len(pids)


def turn(count: int, settings: Settings) -> dict[str, float]:
    """Return the costs with `count` replicas."""
    classes = CLASSES[: min(count, len(CLASSES))]
    with replicas(count, classes=classes, durability=settings.durability) as mesh:
        found = {"idle": idle(mesh.pids)}
        primes = plant(mesh, classes)
        for name, script, environ in (
            ("post", "post.lua", posting(1, classes)),
            ("get", "get.lua", getting(primes)),
        ):
            load(script, mesh.ports, environ, seconds=WARM_UP_S)
            done = load(script, mesh.ports, environ, seconds=settings.seconds, watched=mesh.watched)
            found |= {f"{name}_{what}": cost for what, cost in costs(done, found["idle"], count).items()}
        return found


def full(meshes: Sequence[Mesh], classes: str, settings: Settings) -> float:
    """Return the cost of a POST with all connections for each replica, in ms: that of replicas and servers together."""
    ports = [port for mesh in meshes for port in mesh.ports]
    pids = [pid for mesh in meshes for pid in mesh.pids]
    watched = {"replicas": pids, "redis": [mesh.server.pid for mesh in meshes]}
    idle_ms, connections = idle(pids), CONNECTIONS * len(pids)
    load("post.lua", ports, posting(1, classes), seconds=WARM_UP_S, connections=connections)
    done = load(
        "post.lua", ports, posting(1, classes), seconds=settings.seconds, connections=connections, watched=watched
    )
    cost = costs(done, idle_ms, len(pids))
    return cost["replicas"] + cost["redis"]


def together(count: int, settings: Settings) -> float:
    """Return the cost of a POST on one mesh of `count` replicas."""
    classes = CLASSES[: min(count, len(CLASSES))]
    with replicas(count, classes=classes, durability=settings.durability) as mesh:
        return full([mesh], classes, settings)


def apart(count: int, settings: Settings) -> float:
    """Return the cost of a POST on `count` meshes of one replica: what the machine alone makes of so many processes."""
    with ExitStack() as stack:
        alone = [
            stack.enter_context(replicas(1, classes=CLASSES[0], durability=settings.durability)) for _ in range(count)
        ]
        return full(alone, CLASSES[0], settings)


def costs(done: Outcome, idle_ms: float, count: int) -> dict[str, float]:
    """Return the cost of a request, without the time that idle replicas take."""
    spent_idle = idle_ms * count / done.rate
    return {
        "replicas": max(0.0, done.cpu_ms["replicas"] - spent_idle),
        "redis": done.cpu_ms["redis"],
        "rate": done.rate,
    }


def measure(settings: Settings) -> Record:
    """Measure all numbers of replicas, round by round."""
    counts = settings.levels or COUNTS
    series: dict[str, list[float]] = {}
    for number, count in interleaved(counts, settings.rounds):
        for what, value in turn(count, settings).items():
            series.setdefault(f"{count}|{what}", []).append(value)
        if count == max(counts):
            series.setdefault("together", []).append(together(count, settings))
            series.setdefault("apart", []).append(apart(count, settings))
        print(f"  round {number + 1} {count} replicas", file=sys.stderr)
    measured = {name: Spread.of(values) for name, values in series.items()}
    facts = {"counts": list(counts), "model": model(counts, measured)}
    return Record("mesh_scale", settings, measured, ratios(series, counts), facts=facts)


def ratios(series: dict[str, list[float]], counts: Sequence[int]) -> dict[str, Ratio]:
    """Return the cost of a request with the most replicas over that with the fewest, and with as many meshes of one."""
    few, many = counts[0], counts[-1]
    alone = f"processor time of a POST, {CONNECTIONS} connections a replica, one mesh of {many} / {many} meshes of one"
    compared = {
        f"processor time of a {verb.upper()}, {many} replicas / {few}": Ratio.of(
            per_round(both(series, many, verb), both(series, few, verb)), more_is_better=False
        )
        for verb in LOADS
    }
    return compared | {alone: Ratio.of(per_round(series["together"], series["apart"]), more_is_better=False)}


def both(series: dict[str, list[float]], count: int, verb: str) -> list[float]:
    """Return the cost of the replicas and Redis together."""
    return [a + b for a, b in zip(series[f"{count}|{verb}_replicas"], series[f"{count}|{verb}_redis"], strict=True)]


def model(counts: Sequence[int], measured: dict[str, Spread]) -> dict[str, tuple[float, float]]:
    """Return a and b for each load and part, so that the cost in ms with n replicas is a + b·n (least squares)."""
    return {
        f"{verb}_{part}": line(counts, [measured[f"{count}|{verb}_{part}"].median for count in counts])
        for verb in LOADS
        for part in ("replicas", "redis")
    }


def line(places: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return a and b of the straight line a + b·x closest to the points."""
    count = len(places)
    across, up = sum(places) / count, sum(values) / count
    width = sum((x - across) ** 2 for x in places)
    slope = sum((x - across) * (y - up) for x, y in zip(places, values, strict=True)) / width if width else 0.0
    return up - slope * across, slope


def on_machines(facts: dict[str, tuple[float, float]], verb: str, count: int) -> tuple[float, str]:
    """Return requests a second if each replica and Redis had a core of its own, and which of them is the limit."""
    replicas_ms, redis_ms = (a + b * count for a, b in (facts[f"{verb}_replicas"], facts[f"{verb}_redis"]))
    limits = {"replicas": 1000 * count / max(replicas_ms, 1e-6), "Redis": 1000 / max(redis_ms, 1e-6)}
    who = min(limits, key=limits.__getitem__)
    return limits[who], who


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    counts = record.facts["counts"]
    names = [f"{verb}_{part}" for verb in LOADS for part in ("replicas", "redis")]
    rows = [
        [str(count), *(record.measured[f"{count}|{name}"].text(3) for name in names), idle_text(record, count)]
        for count in counts
    ]
    header = ["replicas", "POST, app ms", "POST, Redis ms", "GET, app ms", "GET, Redis ms", "idle, ms/s a replica"]
    path = plots / "mesh_scale.svg"
    curves = {f"{name.replace('_', ', ')}": [record.measured[f"{n}|{name}"] for n in counts] for name in names}
    lines(path, curves, counts, "replicas", "processor time a request, ms", from_zero=True)
    return "\n\n".join(
        [
            table(header, rows),
            f"![cost of a request over the number of replicas]({plots.name}/{path.name})",
            "The model, from the medians (ms of processor time a request with n replicas):",
            table(["", "app", "Redis"], model_rows(record)),
            machines_text(record),
            record.ratio_table(),
            record.circumstances(),
        ]
    )


def idle_text(record: Record, count: int) -> str:
    return record.measured[f"{count}|idle"].text(1)


def model_rows(record: Record) -> list[list[str]]:
    found = record.facts["model"]
    return [
        [verb.upper(), *("{:.3f} + {:.4f}·n".format(*found[f"{verb}_{part}"]) for part in ("replicas", "redis"))]
        for verb in LOADS
    ]


def machines_text(record: Record) -> str:
    """Return the sentence on what sixteen machines would do."""
    told = []
    for verb in LOADS:
        rate, who = on_machines(record.facts["model"], verb, 16)
        told.append(f"{rate:,.0f} {verb.upper()} a second (the limit: {who})")
    full = 1000 / record.measured[f"{record.facts['counts'][0]}|post_redis"].median
    return (
        f"With sixteen machines of one core each and Redis on its own core: {' or '.join(told)}. The "
        "ten values of a GET are in up to ten databases, which it asks. A POST asks one; what grows here is that the "
        "same "
        f"{CONNECTIONS} connections, spread over more replicas, leave less to share a round trip. With as many "
        f"connections for each replica the trips should be shared again (not measured), and the "
        f"limit of POST be nearer to {full:,.0f} a "
        "second, Redis's time with one replica."
    )
