"""Processes that are killed at random, and books that must balance meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from typing import Self

from mesh import keys
from mesh.requests.scripts import BOOKS
from tests.support.server import Server

ACCOUNTS = ("accepted", "answered", "expired", "cancelled", "dead", "lost", "in_flight", "waiting")
STREAMS = keys.request_streams("ABCD", 16)


async def balance(server: Server, stop: asyncio.Event) -> list[dict[str, int]]:
    """Read the books again and again, as an administrator; fail at the first sample that does not balance."""
    samples = []
    with server.redis() as admin:
        while not stop.is_set():
            values = await asyncio.to_thread(admin.eval, BOOKS.source, 1 + len(STREAMS), keys.BOOKS, *STREAMS)
            books = dict(zip(ACCOUNTS, map(int, values), strict=True))
            assert books["accepted"] == sum(books[name] for name in ACCOUNTS[1:]), books
            assert books["lost"] == 0, books
            samples.append(books)
            await asyncio.sleep(0.05)
    return samples


@contextlib.asynccontextmanager
async def balanced(server: Server) -> AsyncIterator[None]:
    """Check again and again that the books balance while the block lasts."""
    stop = asyncio.Event()
    sampling = asyncio.create_task(balance(server, stop))
    try:
        yield
    finally:
        stop.set()
        samples = await sampling
    assert len(samples) > 10


class KilledProcesses:
    """Worker processes that are killed at random, and replaced. None is left behind."""

    def __init__(self, spawn: Callable[[], subprocess.Popen[bytes]], count: int) -> None:
        self._spawn = spawn
        self.living = [spawn() for _ in range(count)]
        self.killed = 0

    def __enter__(self) -> Self:
        return self

    async def kill_at_random(self, until: float, pause_s: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            victim = random.choice(self.living)
            victim.kill()
            await asyncio.to_thread(victim.wait)
            self.killed += 1
            self.replace_ended()

    def replace_ended(self) -> None:
        """Start a process for each that has ended: killed, or by itself because its lease passed on a slow machine."""
        self.living = [self._spawn() if process.poll() is not None else process for process in self.living]

    def __exit__(self, *_: object) -> None:
        for process in self.living:
            process.kill()
            process.wait()
