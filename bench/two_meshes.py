"""`python -m bench.two_meshes` stores a million values in two meshes, and says what 2, 8 and 32 meshes would do.

1. The long run: two meshes with two replicas each, and the front of `examples/several_meshes`. A million values in
   batches; then each server must have exactly its own values, and GETs must show all multiples of their prime. Then one
   Redis is stopped: the answer must be a 503 that names its mesh.
2. The costs: the processor time of each part for a POST of one value, a value of a batch and a GET by prime, with 1, 2,
   4 and 8 meshes of one replica each. From these follows what 2, 8 and 32 meshes would do (see `model`).

More meshes on one machine add no processors. So this measures cost instead of speed, as `mesh_scale` does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import httpx

from bench.environments import ROOT
from bench.mesh_scale import line
from bench.processes import child, cpu_seconds, until
from bench.replicas import is_ready, replica
from bench.report import table
from bench.servers import Server, accepts, valkey
from examples.several_meshes.meshes import owner
from quart_app.local.ports import free_port

COUNTS = (1, 2, 4, 8)
WANTED = (2, 8, 32)
BATCH = 1_000
#: Requests in flight at once.
CLIENTS = 32
TTL_S = 36_000
#: The smallest primes of the long run's GETs; each has some hundred multiples among a million values.
PRIMES = (7_919, 5_003, 9_973)
IDLE_S = 5.0
#: What the front is asked in the second part.
KINDS = ("POST of one", "value of a batch", "GET by prime")


@dataclass(frozen=True, slots=True)
class Meshes:
    """Meshes that are ready, and the address of their front."""

    servers: Mapping[str, Server]
    replicas: Mapping[str, Sequence[int]]
    front: int
    url: str

    def spent(self) -> dict[str, float]:
        """Return the processor time so far of each part, in seconds; that of a mesh is the mean of all."""
        count = len(self.servers)
        return {
            "front": cpu_seconds([self.front]),
            "replicas": sum(cpu_seconds(pids) for pids in self.replicas.values()) / count,
            "redis": sum(cpu_seconds([server.pid]) for server in self.servers.values()) / count,
        }


@contextmanager
def meshes(count: int, replicas: int) -> Iterator[Meshes]:
    """Run `count` meshes of `replicas` replicas each, and a front."""
    with ExitStack() as stack:
        servers = {f"mesh-{number}": stack.enter_context(valkey()) for number in range(1, count + 1)}
        started: dict[str, list[int]] = {}
        ports = []
        for name, server in servers.items():
            for number in range(replicas):
                ports.append(free_port())
                process = stack.enter_context(replica(server, ports[-1], "AB"[number % 2]))
                started.setdefault(name, []).append(process.pid)
        until(lambda: all(is_ready(port) for port in ports), 180, f"{len(ports)} replicas are ready", 0.1)
        port = free_port()
        addresses = " ".join(f"{name}={server.url}" for name, server in servers.items())
        command = [sys.executable, "-m", "examples.several_meshes.front"]
        environ = {"MESHES": addresses, "PORT": str(port), "MESH_DEADLINE_MS": "30000", "LOG_LEVEL": "error"}
        process = stack.enter_context(child(command, environ=environ, folder=ROOT))
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(url), 30, "the front answers", 0.1)
        yield Meshes(servers, started, process.pid, url)


def answers(url: str) -> bool:
    """Return whether the front and all meshes answer."""
    try:
        return httpx.get(f"{url}/values/2", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def body(values: Sequence[int], classes: str) -> str:
    """Return the body of a POST."""
    return json.dumps([{"value": value, "ttl": TTL_S, "cls": classes[value % len(classes)]} for value in values])


async def send(
    url: str, bodies: Iterator[str] | Iterator[int], progress: str = "", total: int = 0
) -> tuple[int, float]:
    """POST bodies, or GET primes, `CLIENTS` at a time; return how many there were and the seconds they took."""
    done, began = 0, time.perf_counter()
    limits = httpx.Limits(max_connections=CLIENTS)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal done
        for one in bodies:
            if isinstance(one, str):
                answer = await client.post("/values", content=one, headers={"Content-Type": "application/json"})
            else:
                answer = await client.get(f"/values/{one}")
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {answer.text[:300]}")
            done += 1
            if progress and done % (total // 20 or 1) == 0:
                print(f"  {done} of {total} {progress}, {time.perf_counter() - began:.0f} s", file=sys.stderr)

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client, asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(work(client))
    return done, time.perf_counter() - began


def long_run(values: int) -> str:
    """Store so many values in two meshes and check them. Return what happened, as Markdown."""
    with meshes(2, 2) as found:
        before = found.spent()
        batches = (body(range(at, min(at + BATCH, values + 1)), "AB") for at in range(1, values + 1, BATCH))
        _, took_s = asyncio.run(send(found.url, batches, "batches", -(-values // BATCH)))
        spent = {part: after - before[part] for part, after in found.spent().items()}
        stored = {name: stored_in(server) for name, server in found.servers.items()}
        check_stored(stored, values)
        for prime in PRIMES:
            shown = [one["value"] for one in httpx.get(f"{found.url}/values/{prime}", timeout=60).json()]
            if shown != list(range(prime, values + 1, prime)):
                raise RuntimeError(f"GET /values/{prime} shows {len(shown)} values")
        memory = [server.redis().info("memory")["used_memory"] for server in found.servers.values()]
        refused = refusal_without(found, "mesh-2")
    rows = [
        ["values", f"{values:,}"],
        ["in each mesh", " and ".join(f"{len(one):,}" for one in stored.values())],
        ["took", f"{took_s:.0f} s: {values / took_s:,.0f} values a second"],
        *([f"{part}, µs a value", f"{spent[part] * mean * 1e6 / values:.1f}"] for part, mean in PARTS.items()),
        ["memory, bytes a value", f"{sum(memory) / values:.0f}"],
        ["with one Redis stopped", refused],
    ]
    return table(["", ""], rows)


#: The parts, and how many meshes the long run's time of one stands for.
PARTS = {"front": 1, "replicas": 2, "redis": 2}


def stored_in(server: Server) -> set[int]:
    """Return the values that have a record in this server."""
    found: set[int] = set()
    for database in range(16):
        client = server.redis()
        client.select(database)
        found |= {int(name) for name in client.hkeys(f"db{database}:values:records")}
    return found


def check_stored(stored: Mapping[str, set[int]], values: int) -> None:
    """Check that each value is in its own mesh and in no other. Raises RuntimeError."""
    for value in range(1, values + 1):
        holders = [name for name, found in stored.items() if value in found]
        if holders != [owner(str(value), stored)]:
            raise RuntimeError(f"{value} is in {holders}")


def refusal_without(found: Meshes, name: str) -> str:
    """Stop the Redis of one mesh and return what a GET says then. Raises RuntimeError if it is no 503 by that name."""
    os.kill(found.servers[name].pid, signal.SIGTERM)
    until(lambda: not accepts(found.servers[name].port), 10, "Redis has stopped")
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        answer = httpx.get(f"{found.url}/values/{PRIMES[0]}", timeout=60)
        problem = answer.json()
        if answer.status_code == 503 and problem["meshes"] == [name]:
            return f"503 `{problem['detail']}`"
        if answer.status_code == 200:
            raise RuntimeError("a GET without one mesh was answered with 200")
    raise RuntimeError(f"a GET without one mesh was never answered with 503: {answer.text[:300]}")


def costs(count: int, requests: int) -> dict[str, float]:
    """Return the processor time in ms of each part for each kind of request, by "kind|part"."""
    spent: dict[str, tuple[float, float, int]] = {}
    with meshes(count, 1) as those:
        primes = planted(those, 50)
        for kind, (calls, each) in kinds(primes, requests).items():
            before = those.spent()
            done, took_s = asyncio.run(send(those.url, calls))
            for part, after in those.spent().items():
                spent[f"{kind}|{part}"] = (after - before[part], took_s, done * each)
        # Not at the start, when processes still have work of their own.
        idle = idle_of(those)
    return {
        name: max(0.0, busy_s - idle[name.partition("|")[2]] * took_s) * 1000 / calls
        for name, (busy_s, took_s, calls) in spent.items()
    }


def kinds(primes: Sequence[int], requests: int) -> dict[str, tuple[Iterator[str] | Iterator[int], int]]:
    """Return the requests of each kind, and how many values each of them has."""
    numbers = itertools.count(10**12)
    one = (body([next(numbers)], "A") for _ in range(requests))
    batches = (body([next(numbers) for _ in range(BATCH)], "A") for _ in range(requests // 20))
    gets = (primes[n % len(primes)] for n in range(requests))
    return dict(zip(KINDS, ((one, 1), (batches, BATCH), (gets, 1)), strict=True))


def idle_of(those: Meshes) -> dict[str, float]:
    """Return the processor time of each part in a second without requests."""
    before, began = those.spent(), time.perf_counter()
    time.sleep(IDLE_S)
    took_s = time.perf_counter() - began
    return {part: (after - before[part]) / took_s for part, after in those.spent().items()}


def planted(those: Meshes, count: int) -> list[int]:
    """Store ten values for each of some primes, so that a GET finds exactly these; return the primes."""
    primes = [number for number in range(100_003, 110_000, 2) if all(number % d for d in range(3, 332, 2))][:count]
    values = [prime * factor for prime in primes for factor in range(2, 12)]
    asyncio.run(send(those.url, iter([body(values, "A")])))
    return primes


def model(measured: Mapping[int, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return a and b for each kind and part, so that the cost of one part in ms with n meshes is a + b·n.

    A POST costs its own mesh the same however many there are, so one mesh of n has the n-th part: a stands for the
    whole, and `predicted` divides it. A GET costs each mesh the same. Only the front has more to do with more meshes.
    """
    counts = sorted(measured)
    fitted = {}
    for name in measured[counts[0]]:
        if name.endswith("|front"):
            a, b = line(counts, [measured[n][name] for n in counts])
            fitted[name] = (a, b) if b > 0 else (median(measured[n][name] for n in counts), 0.0)
        else:
            fitted[name] = (median(measured[n][name] * (n if shared(name) else 1) for n in counts), 0.0)
    return fitted


def shared(name: str) -> bool:
    """Return whether the meshes share these requests; each GET goes to all of them."""
    kind, _, part = name.partition("|")
    return part != "front" and kind != "GET by prime"


def predicted(fitted: Mapping[str, tuple[float, float]], name: str, count: int) -> float:
    """Return the cost in ms for one part of each mesh."""
    a, b = fitted[name]
    return (a + b * count) / (count if shared(name) else 1)


def outlook(fitted: Mapping[str, tuple[float, float]], count: int) -> list[str]:
    """Return a row: what so many meshes carry with four replicas each, every process on a core of its own."""
    row = [str(count)]
    for kind in KINDS:
        redis = 1000 / predicted(fitted, f"{kind}|redis", count)
        replicas = 4 * 1000 / predicted(fitted, f"{kind}|replicas", count)
        rate = min(redis, replicas)
        fronts = rate * predicted(fitted, f"{kind}|front", count) / 1000
        row.append(f"{rate:,.0f} ({'Redis' if redis < replicas else 'replicas'}; fronts: {fronts:.1f})")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.two_meshes", description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=1_000_000, help="values of the long run (%(default)s)")
    parser.add_argument("--requests", type=int, default=1_000, help="requests of each kind for the costs (%(default)s)")
    parser.add_argument("--only", choices=("run", "costs"), help="one of the two parts")
    options = parser.parse_args()
    if options.only != "costs":
        print(long_run(options.values), flush=True)
    if options.only == "run":
        return
    measured = {}
    for count in COUNTS:
        print(f"  costs with {count} meshes", file=sys.stderr)
        measured[count] = costs(count, options.requests)
    names = list(measured[1])
    print(
        table(
            ["meshes", *(name.replace("|", ", ") for name in names)],
            [[str(n), *(f"{measured[n][name]:.4f}" for name in names)] for n in COUNTS],
        )
    )
    fitted = model(measured)
    print(table(["meshes", *KINDS], [outlook(fitted, count) for count in WANTED]))


if __name__ == "__main__":
    main()
