"""Replicas of a test, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from mesh import Member
from quart_app.local.discovery import read_roster
from quart_app.local.ports import free_ports
from quart_app.local.processes import ends_within
from tests.support.server import Server
from tests.support.waiting import eventually

#: The times of the fault matrix: short, so that a test can wait for them.
PROFILE = {"MESH_LEASE_TTL_MS": "3000", "MESH_DEADLINE_MS": "5000", "MESH_CLAIM_IDLE_MS": "2000"}
START_WAIT_S = 40.0


@dataclass
class Process:
    """One replica in a process of its own; `public` and `private` are the URLs of its two ports."""

    popen: subprocess.Popen[bytes]
    public: str
    private: str
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: int) -> None:
        """Send the process a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(signal.SIGCONT)
        self.popen.kill()
        self.popen.wait()

    async def ended(self, wait_s: float = 10) -> int:
        """Wait until the process ends by itself and return its exit status. Raises TimeoutError."""
        if not await ends_within(self.popen, wait_s):
            raise TimeoutError(f"process {self.pid} is still running:\n{self.log.read_text()[-3000:]}")
        return self.popen.returncode


class Replicas:
    """Replicas of a test, each in a process of its own, on ports of its own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.processes: list[Process] = []
        self.client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=500))

    def spawn(
        self,
        env: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        code: Path | None = None,
        module: str = "quart_app",
    ) -> Process:
        """Start one more replica, and do not wait for it.

        `prepare` runs in the new process first. `code` is the folder of another release. `module` is what runs.
        """
        public, private = free_ports(2)
        log = self.folder / f"replica-{len(self.processes)}.log"
        own = {
            **os.environ, **PROFILE, "REDIS_URL": self.server.url, "SERVICES": "values", "HOST": "127.0.0.1",
            "PORT": str(public), "PRIVATE_PORT": str(private), "LOG_FORMAT": "console", **(env or {}),
        }  # fmt: skip
        with log.open("wb") as out:
            command = [sys.executable, "-m", module]
            popen = subprocess.Popen(command, stdout=out, stderr=out, env=own, preexec_fn=prepare, cwd=code)  # noqa: PLW1509
        process = Process(popen, f"http://127.0.0.1:{public}", f"http://127.0.0.1:{private}", log)
        self.processes.append(process)
        return process

    async def __call__(self, count: int, env: dict[str, str] | None = None) -> list[Process]:
        """Start `count` replicas and wait until each is ready."""
        started = [self.spawn(env) for _ in range(count)]
        for process in started:
            await self.ready(process)
        return started

    async def ready(self, process: Process, wait_s: float = START_WAIT_S) -> None:
        """Wait until a replica is ready. Raises AssertionError when it ends or takes longer than `wait_s` seconds."""

        async def is_ready() -> bool:
            if process.popen.poll() is not None:
                raise AssertionError(f"the replica ended: {process.log.read_text()[-3000:]}")
            return await self.status(process, "/readyz") == 200

        await eventually(is_ready, wait_s, lambda: process.log.read_text()[-3000:])

    async def status(self, process: Process, path: str) -> int:
        """GET `path` on the private port and return the status; 0 when nothing listens there."""
        try:
            return (await self.client.get(process.private + path)).status_code
        except httpx.TransportError:
            return 0

    async def roster(self) -> list[Member]:
        """Return the replicas that hold a database now."""
        return [member for member in await read_roster(self.server.settings) if member.leased]

    async def close(self) -> None:
        for process in self.processes:
            process.kill()
        await self.client.aclose()
