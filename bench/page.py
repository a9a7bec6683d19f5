"""What open live pages cost: the rate of calls with 0, 1 and 16 viewers, on the same mesh in the same round.

One replica calls, one works, and a third one serves the pages. Each viewer follows its overview, as a browser does, and
throws away what it gets. First 10,000 calls a second are asked for, then as many as are answered.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.environments import PEERS
from bench.processes import child, cpu_seconds, until
from bench.record import Ratio, Record, Settings
from bench.replicas import READY_TIMEOUT_S, is_ready, replica
from bench.report import table
from bench.request_reply import MESH, follow
from bench.servers import Server, valkey
from bench.spread import Spread, per_round
from quart_app.local.ports import free_port

VIEWERS = (0, 1, 16)
IN_FLIGHT = 128
#: Calls a second that are asked for, by the name of the load; 0: as many as are answered.
LOADS = {"10,000 calls/s": 10_000, "as many calls as possible": 0}
#: What is measured by the title of its column, and its decimal places; "page" is the replica that serves pages.
COLUMNS = {
    "calls/s": ("rate", 0),
    "p99 ms": ("p99_ms", 1),
    "CPU ms a call": ("cpu_ms", 3),
    "CPU ms a second, replica with the pages": ("page", 0),
}
#: The rate that must be left while pages are open, as a part of the rate without them.
GOAL = 0.98


class NotFollowed(RuntimeError):
    """A viewer got no event."""


@contextmanager
def viewer(host: str, port: int) -> Iterator[threading.Event]:
    """Follow the overview of a replica while the block lasts; the event says that something has come."""
    connection = socket.create_connection((host, port), timeout=10)
    connection.sendall(f"GET /mesh/events/overview HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    connection.settimeout(None)
    heard = threading.Event()

    def read() -> None:
        seen = b""
        while data := _received(connection):
            seen = seen if heard.is_set() else seen + data
            if b"event: sections" in seen:
                heard.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        connection.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        connection.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


@contextmanager
def viewers(host: str, port: int, count: int) -> Iterator[None]:
    """Let so many viewers follow a replica. Raises NotFollowed."""
    with ExitStack() as stack:
        heard = [stack.enter_context(viewer(host, port)) for _ in range(count)]
        if not all(each.wait(10) for each in heard):
            raise NotFollowed(f"not all of {count} viewers got an event")
        yield


@contextmanager
def page(server: Server) -> Iterator[tuple[int, str, int]]:
    """Run a replica that serves pages; yield its pid, and the host and the port of the pages."""
    port = free_port()
    with replica(server, port, "C") as process:
        until(lambda: is_ready(port), READY_TIMEOUT_S, "the replica with the pages is ready", 0.05)
        rows = (server.redis().hgetall(f"mesh:replica:{n}") for n in range(16))
        (address,) = [row["private"] for row in rows if row.get("private")]
        host, _, private = str(address).rpartition(":")
        yield process.pid, host, int(private)


def call(server: Server, worker: int, rate: int, seconds: float) -> dict[str, Any]:
    """Make calls for some time, and return what the client said of them."""
    environ = {
        "BENCH_REDIS_URL": server.url,
        "BENCH_RATE": str(rate),
        "BENCH_LEVELS": str(IN_FLIGHT),
        "BENCH_SECONDS": str(seconds),
    }
    with child([MESH.python, MESH.program, "client"], environ=environ, folder=PEERS, listen=True) as client:
        found, _ = follow(client.stdout, [client.pid, worker, server.pid], "mesh")
    return found[0]


def measure(settings: Settings) -> Record:
    """Measure each number of viewers in each round; every other round begins with the most."""
    series: dict[str, list[float]] = {}
    for number in range(settings.rounds):
        with ExitStack() as stack:
            server = stack.enter_context(valkey(settings.durability))
            environ = {"BENCH_REDIS_URL": server.url}
            worker = stack.enter_context(child([MESH.python, MESH.program, "worker"], environ=environ, folder=PEERS))
            pid, host, port = stack.enter_context(page(server))
            for name, rate in LOADS.items():
                for count in VIEWERS if number % 2 == 0 else VIEWERS[::-1]:
                    with viewers(host, port, count):
                        before, began = cpu_seconds([pid]), time.monotonic()
                        found = call(server, worker.pid, rate, settings.seconds)
                        found["page"] = 1000 * (cpu_seconds([pid]) - before) / (time.monotonic() - began)
                    for what, _ in COLUMNS.values():
                        series.setdefault(f"{name}|{count}|{what}", []).append(found[what])
                    print(f"  round {number + 1}, {name}, {count} viewers: {found['rate']:,.0f}/s", file=sys.stderr)
    return Record("page", settings, {name: Spread.of(values) for name, values in series.items()}, ratios(series))


def ratios(series: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Return the rate with pages open as a ratio to the rate without."""
    return {
        f"{name}, {count} page{'s' * (count > 1)} open / none": Ratio.of(
            per_round(series[f"{name}|{count}|rate"], series[f"{name}|0|rate"]), goal=GOAL
        )
        for name in LOADS
        for count in VIEWERS[1:]
    }


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    rows = [
        [name, str(count), *(record.measured[f"{name}|{count}|{what}"].text(n) for what, n in COLUMNS.values())]
        for name in LOADS
        for count in VIEWERS
    ]
    header = ["asked for", "pages open", *COLUMNS]
    who = f"{IN_FLIGHT} calls in flight at most; the replica with the pages is a third one on the same processors."
    return "\n\n".join([table(header, rows), record.ratio_table(), f"{record.circumstances()} {who}"])
