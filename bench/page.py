"""What open live pages cost: the rate of POST /values with 0, 1 and 16 viewers, on the same replicas in the same round.

Each viewer follows the overview of one replica, as a browser does, and throws away what it gets.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.load_http import CONNECTIONS, load, posting
from bench.record import Ratio, Record, Settings
from bench.replicas import Mesh, replicas
from bench.report import table
from bench.spread import Spread, per_round

VIEWERS = (0, 1, 16)
REPLICAS = 2
WARM_UP_S = 1.0
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
def viewers(mesh: Mesh, count: int) -> Iterator[None]:
    """Let so many viewers follow the replicas, spread over them. Raises NotFollowed."""
    redis = mesh.server.redis()
    rows = [row for n in range(16) if (row := redis.hgetall(f"mesh:replica:{n}"))]
    with ExitStack() as stack:
        heard = []
        for number in range(count):
            host, _, port = rows[number % len(rows)]["private"].rpartition(":")
            heard.append(stack.enter_context(viewer(host, int(port))))
        if not all(each.wait(10) for each in heard):
            raise NotFollowed(f"not all of {count} viewers got an event")
        yield


def measure(settings: Settings) -> Record:
    """Measure each number of viewers in each round; every other round begins with the most."""
    rates: dict[str, list[float]] = {}
    for number in range(settings.rounds):
        with replicas(REPLICAS, classes="A", durability=settings.durability) as mesh:
            load("post.lua", mesh.ports, posting(), seconds=WARM_UP_S)
            for count in VIEWERS if number % 2 == 0 else VIEWERS[::-1]:
                with viewers(mesh, count):
                    found = load("post.lua", mesh.ports, posting(), seconds=settings.seconds, watched=mesh.watched)
                rates.setdefault(f"{count}|rate", []).append(found.rate)
                for name, cost in found.cpu_ms.items():
                    rates.setdefault(f"{count}|cpu_ms_{name}", []).append(cost)
                print(f"  round {number + 1} {count} pages: {found.rate:,.0f}/s", file=sys.stderr)
    return Record("page", settings, {name: Spread.of(values) for name, values in rates.items()}, ratios(rates))


def ratios(rates: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Return the rate with pages open as a ratio to the rate without."""
    return {
        f"POST, rate, {count} pages open / none": Ratio.of(
            per_round(rates[f"{count}|rate"], rates["0|rate"]), goal=GOAL
        )
        for count in VIEWERS[1:]
    }


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    rows = [
        [str(count), record.measured[f"{count}|rate"].text(0)]
        + [record.measured[f"{count}|cpu_ms_{name}"].text(3) for name in ("replicas", "redis")]
        for count in VIEWERS
    ]
    header = ["pages open", "requests/s", "CPU ms a request, app", "CPU ms a request, Redis"]
    client = f"{REPLICAS} replicas, {CONNECTIONS} connections, by wrk."
    return "\n\n".join([table(header, rows), record.ratio_table(), f"{record.circumstances()} {client}"])
