"""Servers of a measurement: new for each turn, on loopback, in a folder that is removed afterwards."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from bench.processes import child, until
from quart_app.local.ports import free_port
from quart_app.local.redis_program import wheel_server

#: Redis's AOF settings: no file, written every second, written before every answer.
DURABILITY = {
    "off": ("--appendonly", "no"),
    "everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
}
START_TIMEOUT_S = 10.0


class ServerMissing(RuntimeError):
    """A server that a contender needs is not installed."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    port: int
    pid: int

    def redis(self) -> redis.Redis:
        """Return a client to look into the server from outside the measurement."""
        return redis.Redis(port=self.port, decode_responses=True)


def accepts(port: int) -> bool:
    """Return whether a process accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def valkey(durability: str = "off") -> Iterator[Server]:
    """Run an empty Valkey, the server that `make run` starts."""
    port, program = free_port(), wheel_server()
    with tempfile.TemporaryDirectory(prefix="bench-valkey-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with child([program.path, *options, *DURABILITY[durability]], environ=program.environ) as process:
            until(lambda: accepts(port), START_TIMEOUT_S, "Valkey accepts connections")
            yield Server(f"redis://127.0.0.1:{port}/0", port, process.pid)


@contextmanager
def nats() -> Iterator[Server]:
    """Run a NATS server."""
    binary = shutil.which("nats-server")
    if binary is None:
        raise ServerMissing("nats-server is not installed (Debian: apt-get install nats-server)")
    port = free_port()
    with child([binary, "--addr", "127.0.0.1", "--port", str(port)]) as process:
        until(lambda: accepts(port), START_TIMEOUT_S, "NATS accepts connections")
        yield Server(f"nats://127.0.0.1:{port}", port, process.pid)
