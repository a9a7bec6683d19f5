"""How to start both providers beside a mesh, and what its replicas must be told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

#: The ports of the task text.
FREE_PORT = 2197
PAID_PORT = 2198
#: A provider that is told to stop finishes what it has within this.
STOP_WAIT_S = 5.0

Spawn = Callable[[list[str], IO[bytes]], "subprocess.Popen[bytes]"]


def commands(free_port: int = FREE_PORT, paid_port: int = PAID_PORT) -> dict[str, list[str]]:
    """One command line per provider. They take the environment of the replicas, and stop on SIGTERM."""
    ports = {"free": free_port, "paid": paid_port}
    return {
        kind: [sys.executable, "-m", "quart_app.providers", kind, "--host", "127.0.0.1", "--port", str(port)]
        for kind, port in ports.items()
    }


def environment(free_port: int = FREE_PORT, paid_port: int = PAID_PORT) -> dict[str, str]:
    """What tells a replica where the two are."""
    return {
        "FREE_PROVIDER_URL": f"http://127.0.0.1:{free_port}/",
        "PAID_PROVIDER_URL": f"http://127.0.0.1:{paid_port}/",
    }


@asynccontextmanager
async def running(spawn: Spawn, logs: Path) -> AsyncIterator[dict[str, str]]:
    """Both providers as children, their output in `logs`; yields the environment for the replicas.

    Each has its usual port, or any free one. Where the environment names a provider already, that one is used.
    """
    ports = _free_port(FREE_PORT), _free_port(PAID_PORT)
    told = {name: os.environ.get(name) or url for name, url in environment(*ports).items()}
    with contextlib.ExitStack() as stack:
        for kind, command in commands(*ports).items():
            if not os.environ.get(f"{kind.upper()}_PROVIDER_URL"):
                log = stack.enter_context((logs / f"provider-{kind}.log").open("ab"))
                stack.callback(_stop, spawn(command, log))
        try:
            yield told
        finally:
            await asyncio.to_thread(stack.close)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _free_port(wanted: int) -> int:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", wanted)):
        return wanted
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
