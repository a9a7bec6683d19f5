"""A steady load over real HTTP, with a record of every request and answer."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

#: A client gives up after this time, which is far above the default deadline of a request.
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its outcome; `status` is 0 when there was no answer."""

    method: str
    body: Any
    status: int
    error: str
    began: float
    took_s: float

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass
class History:
    """All requests of a load, in the order of their answers."""

    samples: list[Sample] = field(default_factory=list)

    def failed(self, method: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.method == method and not sample.ok]

    def succeeded(self, method: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.method == method and sample.ok]

    def says(self) -> str:
        """Return a summary in one line."""
        counted = Counter((sample.method, sample.status or sample.error) for sample in self.samples)
        slowest = max((sample.took_s for sample in self.samples), default=0.0)
        parts = [f"{method} {status}: {count}" for (method, status), count in sorted(counted.items(), key=str)]
        return f"{', '.join(parts)}; slowest {slowest:.2f} s"


async def send(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Sample:
    """Send one request and return a sample, also after a failure."""
    began = time.monotonic()
    status, error = 0, ""
    try:
        status = (await client.request(method, path, json=body)).status_code
    except httpx.HTTPError as failure:
        error = type(failure).__name__
    return Sample(method, body, status, error, began, time.monotonic() - began)


@asynccontextmanager
async def load(base: str, classes: Sequence[str], *, clients: int = 8, pause_s: float = 0.02) -> AsyncIterator[History]:
    """Run a load while the block lasts: half of the clients POST new values, half GET by prime."""
    history = History()
    stop = asyncio.Event()
    numbers = itertools.count(random.randrange(10**12))

    async def ask(client: httpx.AsyncClient, number: int) -> Sample:
        if number % 2:
            item = {"value": 2 * next(numbers), "ttl": 600, "cls": classes[number // 2 % len(classes)]}
            return await send(client, "POST", "/values", [item])
        return await send(client, "GET", "/values/3?limit=10")

    async def keep_asking(client: httpx.AsyncClient, number: int) -> None:
        while not stop.is_set():
            history.samples.append(await ask(client, number))
            await asyncio.sleep(pause_s)

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=base, timeout=PATIENCE_S, limits=limits) as client:
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(keep_asking(client, number))
            try:
                yield history
            finally:
                stop.set()
