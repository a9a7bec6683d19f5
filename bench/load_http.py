"""HTTP under load. The client is wrk: in C, so that on two cores it takes little from what is measured."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import cpu_seconds
from bench.servers import ServerMissing

SCRIPTS = Path(__file__).resolve().parent / "wrk"
CONNECTIONS = 32


class LoadFailed(RuntimeError):
    """Not every request was answered as it should be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load amounted to."""

    calls: int
    seconds: float
    median_ms: float
    p99_ms: float
    #: processor time per call of each group of processes that was watched, in ms
    cpu_ms: Mapping[str, float]

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


def load(
    script: str,
    ports: Sequence[int],
    environ: Mapping[str, str],
    *,
    seconds: float,
    connections: int = CONNECTIONS,
    watched: Mapping[str, Sequence[int]] | None = None,
) -> Outcome:
    """Put a load on some ports. Raises LoadFailed where an answer was no 2xx, or none came."""
    found = try_load(script, ports, environ, seconds=seconds, connections=connections, watched=watched)
    if not found.calls:
        raise LoadFailed(f"{script}: no answer within {seconds} s")
    return found


def try_load(
    script: str,
    ports: Sequence[int],
    environ: Mapping[str, str],
    *,
    seconds: float,
    connections: int = CONNECTIONS,
    watched: Mapping[str, Sequence[int]] | None = None,
) -> Outcome:
    """The same for warming up or filling: on a busy machine a large request may outlast it."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise ServerMissing("wrk is not installed (Debian: apt-get install wrk)")
    threads = min(len(ports), connections)
    values = {
        **environ,
        "BENCH_COMMON": str(SCRIPTS / "common.lua"),
        "BENCH_PORTS": " ".join(map(str, ports)),
        "BENCH_SEED": str(random.randrange(2**31)),
    }
    options = [f"-t{threads}", f"-c{max(connections, threads)}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"]
    argv = [wrk, *options, "-s", str(SCRIPTS / script), f"http://127.0.0.1:{ports[0]}/values"]
    before = {name: cpu_seconds(pids) for name, pids in (watched or {}).items()}
    done = subprocess.run(
        argv, env={**os.environ, **values}, capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    after = {name: cpu_seconds(pids) for name, pids in (watched or {}).items()}
    found = last_line(done)
    if found["refused"] or found["broken"]:
        raise LoadFailed(f"{script}: {found}")
    cost = {name: 1000 * (after[name] - before[name]) / max(1, found["calls"]) for name in before}
    return Outcome(found["calls"], found["seconds"], found["median_ms"], found["p99_ms"], cost)


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """wrk's own report comes before the line that our script writes."""
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise LoadFailed(f"wrk: {done.stdout[-500:]} {done.stderr[-500:]}")


def posting(items: int = 1, classes: str = "A", ttl: int = 300) -> dict[str, str]:
    """The environment of post.lua."""
    return {"BENCH_ITEMS": str(items), "BENCH_CLASSES": classes, "BENCH_TTL": str(ttl)}


def getting(primes: Sequence[int]) -> dict[str, str]:
    """The environment of get.lua."""
    return {"BENCH_PRIMES": " ".join(map(str, primes))}
