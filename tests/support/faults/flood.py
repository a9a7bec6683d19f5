"""A load beyond what the mesh can do, over plain sockets, so that the client itself takes little processor time."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 12.0


@dataclass(frozen=True, slots=True)
class Shot:
    """One request. `status` is 0 when there was no answer."""

    status: int
    called: float
    took_s: float


def share(shots: Sequence[float], part: float) -> float:
    """Return the quantile `part` (0 to 1) of the values."""
    ordered = sorted(shots)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class Gun:
    """Sends POSTs to several addresses in turn, over connections that it keeps open."""

    def __init__(self, bases: Sequence[str], path: str, bodies: Iterator[Any]) -> None:
        self._hosts = itertools.cycle([(urlsplit(base).hostname, urlsplit(base).port) for base in bases])
        self._path = path
        self._bodies = bodies
        self._idle: dict[Any, list[Any]] = {}
        self.shots: list[Shot] = []

    async def shoot(self) -> Shot:
        """Send one request and return what became of it."""
        host = next(self._hosts)
        body = json.dumps(next(self._bodies)).encode()
        called, status = time.monotonic(), 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await self._exchange(host, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            status = 0
        shot = Shot(status, called, time.monotonic() - called)
        self.shots.append(shot)
        return shot

    async def _exchange(self, host: Any, body: bytes) -> int:
        idle = self._idle.setdefault(host, [])
        reader, writer = idle.pop() if idle else await asyncio.open_connection(*host)
        head = f"POST {self._path} HTTP/1.1\r\nHost: {host[0]}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        if b"connection: close" in answer:
            writer.close()
        else:
            idle.append((reader, writer))
        return int(answer.split(b" ", 2)[1])

    async def clients(self, count: int, seconds: float) -> list[Shot]:
        """Run `count` clients for `seconds`, each with one request at a time, and return their requests."""
        until = time.monotonic() + seconds
        before = len(self.shots)

        async def client() -> None:
            while time.monotonic() < until:
                await self.shoot()

        await asyncio.gather(*(client() for _ in range(count)))
        return self.shots[before:]

    async def rate(self, per_s: float, seconds: float) -> list[Shot]:
        """Send `per_s` requests a second whether answers come or not; return all when the last answer is there."""
        before, began, sent = len(self.shots), time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while (elapsed := time.monotonic() - began) < seconds:
                for _ in range(int(elapsed * per_s) - sent):
                    tasks.create_task(self.shoot())
                    sent += 1
                await asyncio.sleep(0.01)
        return self.shots[before:]

    def close(self) -> None:
        for connections in self._idle.values():
            for _, writer in connections:
                writer.close()
