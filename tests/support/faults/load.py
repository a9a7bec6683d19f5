"""A known load: each request leaves something behind that tells it from all others.

tally   one effect under an id of its own
put     one to three of a dozen values, to any class; each put has a ttl of its own, which is its tag
brief   a value that no other request uses, with a ttl of one or two seconds
get     all values with one prime
look    the records themselves, read with administrator rights
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import redis.asyncio
from redis import exceptions as redis_errors

from tests.support.faults.history import History, Look, Sample, send

#: Each value of a load has one of these primes as a factor.
PRIME = 1_000_003
BRIEF_PRIME = 1_000_033
VALUES = [PRIME * factor for factor in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)]
PATIENCE_S = 15.0
LOOK_S = 0.25

LOOK = """
local found = {}
for i, value in ipairs(ARGV) do
  redis.call('SELECT', 0)
  local place = redis.call('GET', 'shared:values:where:' .. value)
  local record = ''
  if place then
    local database = string.match(place, '^%d+')
    redis.call('SELECT', database)
    record = redis.call('HGET', 'db' .. database .. ':values:records', value) or 'torn'
  end
  found[i] = record
end
redis.call('SELECT', 0)
return found
"""


def tag_of(record: str) -> int | None:
    """Return the tag of the put that wrote a record: its ttl."""
    if not record:
        return None
    if record == "torn":
        return -1
    id, expiry, *_ = record.split(" ")
    return (int(expiry) - int(id.partition("-")[0])) // 1000


class Load:
    """Clients of one address; each sends one request at a time."""

    def __init__(self, base: str, history: History, classes: str, databases: Sequence[int], chance: random.Random):
        self._base = base
        self._history = history
        self._classes = classes
        self._databases = databases
        self._chance = chance
        self._ids = itertools.count(1)
        self._stop = asyncio.Event()
        self._name = f"{chance.randrange(1 << 32):08x}"

    @contextlib.asynccontextmanager
    async def running(self, admin: redis.asyncio.Redis, clients: int, pause_s: float) -> AsyncIterator[None]:
        """Send requests while the block lasts, then wait for their answers."""
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=self._base, timeout=PATIENCE_S, limits=limits) as client:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(clients):
                    tasks.create_task(self._ask(client, pause_s))
                tasks.create_task(self._look(admin))
                try:
                    yield
                finally:
                    self._stop.set()

    async def _ask(self, client: httpx.AsyncClient, pause_s: float) -> None:
        while not self._stop.is_set():
            path, asked = self._next()
            self._history.samples.append(await send(client, path, asked))
            await asyncio.sleep(self._chance.uniform(0, 2 * pause_s))

    def _next(self) -> tuple[str, Any]:
        """Return the path and the body of the next request."""
        chance = self._chance
        match chance.choices(("tally", "put", "get", "brief"), (40, 35, 20, 5))[0]:
            case "tally":
                return "/tally", self.tally()
            case "put":
                values = chance.sample(VALUES, chance.choice((1, 1, 2, 3)))
                return "/values", [self._item(value, next(self._history.tags)) for value in values]
            case "brief":
                return "/values", [self._item(BRIEF_PRIME * chance.randrange(1, 1 << 40), chance.choice((1, 2)))]
            case _:
                return f"/values/{chance.choice((PRIME, PRIME, PRIME, BRIEF_PRIME))}", None

    def _item(self, value: int, ttl: int) -> dict[str, Any]:
        return {"value": value, "ttl": ttl, "cls": self._chance.choice(self._classes)}

    def tally(self) -> dict[str, Any]:
        """Return the body of a tally to a class or to one database."""
        asked: dict[str, Any] = {"id": f"{self._name}-{next(self._ids)}"}
        if self._databases and self._chance.random() < 0.3:
            return {**asked, "database": self._chance.choice(self._databases)}
        return {**asked, "cls": self._chance.choice(self._classes)}

    async def _look(self, admin: redis.asyncio.Redis) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(redis_errors.RedisError, OSError):
                self._history.looks.append(await look(admin))
            await asyncio.sleep(LOOK_S)


async def look(admin: redis.asyncio.Redis) -> Look:
    """Read the records of the dozen values at one moment."""
    called = time.monotonic()
    found = await admin.eval(LOOK, 0, *map(str, VALUES))
    tags = {value: tag_of(record) for value, record in zip(VALUES, found, strict=True)}
    return Look(tags, called, time.monotonic())


def written(sample: Sample) -> dict[int, int]:
    """Return the tag of each value of a put."""
    return {item["value"]: item["ttl"] for item in sample.asked}
