"""Replicas of the application for one measurement, on a Redis server of their own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import gmpy2

from bench.environments import THIS, Release
from bench.processes import child, until
from bench.servers import Server, valkey
from quart_app.local.ports import free_port

READY_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Mesh:
    """Replicas that are ready, and their server."""

    server: Server
    ports: Sequence[int]
    pids: Sequence[int]

    @property
    def watched(self) -> dict[str, list[int]]:
        """The processes whose time counts as the cost of a request."""
        return {"replicas": list(self.pids), "redis": [self.server.pid]}


@contextmanager
def replicas(count: int, *, classes: str = "", durability: str = "off", release: Release = THIS) -> Iterator[Mesh]:
    """Run `count` replicas with /values. `classes` gives each its class; without it the mesh chooses."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey(durability))
        ports = [free_port() for _ in range(count)]
        started = [
            stack.enter_context(replica(server, port, classes[n % len(classes)] if classes else "", release))
            for n, port in enumerate(ports)
        ]
        mesh = Mesh(server, ports, [process.pid for process in started])

        def all_ready() -> bool:
            for process in started:
                if process.poll() is not None:
                    raise RuntimeError("a replica ended while starting")
            return all(is_ready(port) for port in ports)

        until(all_ready, READY_TIMEOUT_S, f"{count} replicas are ready", 0.05)
        yield mesh


def replica(server: Server, port: int, cls: str = "", release: Release = THIS) -> Any:
    """Start the process of one replica."""
    environ = {
        "REDIS_URL": server.url,
        "PORT": str(port),
        "PRIVATE_PORT": "0",
        "SERVICES": "values",
        "LOG_LEVEL": "error",
        **({"MESH_CLASS": cls} if cls else {}),
    }
    return child([release.python, "-m", "quart_app"], environ=environ, folder=release.folder)


def is_ready(port: int) -> bool:
    """Return whether a replica is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def post(port: int, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send POST /values and return the answer. Raises urllib.error.HTTPError."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/values",
        json.dumps(list(items)).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def get(port: int, prime: int) -> list[dict[str, Any]]:
    """Send GET /values/{prime} and return the answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/values/{prime}", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def plant(mesh: Mesh, classes: str, primes: int = 50, results: int = 10, ttl: int = 3600) -> list[int]:
    """Store `results` values for each of some primes, so that a GET finds exactly these; return the primes."""
    planted = []
    prime = 2**31
    for _ in range(primes):
        prime = int(gmpy2.next_prime(prime))
        planted.append(prime)
        factor = 2
        items = []
        for n in range(results):
            factor = int(gmpy2.next_prime(factor))
            items.append({"value": prime * factor, "ttl": ttl, "cls": classes[n % len(classes)]})
        post(mesh.ports[0], items)
    found = get(mesh.ports[-1], planted[0])
    if len(found) != results:
        raise RuntimeError(f"planted {results} values of {planted[0]}, found {len(found)}")
    return planted
