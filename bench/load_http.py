"""HTTP load by wrk, a client in C, so that on two cores the client takes little from the server."""

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
    """A request was not answered, or not with 2xx."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a load."""

    calls: int
    seconds: float
    median_ms: float
    p99_ms: float
    #: processor time a call, in ms, for each watched group of processes
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
    """Put a load on some ports. Raises LoadFailed when an answer is not 2xx or does not come."""
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
    """Put a load on some ports for warming up or filling; requests may outlast it on a busy machine."""
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
    """Return the line of our script, which comes after wrk's own report. Raises LoadFailed."""
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise LoadFailed(f"wrk: {done.stdout[-500:]} {done.stderr[-500:]}")


def posting(items: int = 1, classes: str = "A", ttl: int = 300) -> dict[str, str]:
    """Return the environment of post.lua."""
    return {"BENCH_ITEMS": str(items), "BENCH_CLASSES": classes, "BENCH_TTL": str(ttl)}


def getting(primes: Sequence[int]) -> dict[str, str]:
    """Return the environment of get.lua."""
    return {"BENCH_PRIMES": " ".join(map(str, primes))}
