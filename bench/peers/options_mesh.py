"""The mesh with its options: idempotency keys, lanes of one at a time in order, and requests for later."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta

import structlog
from load import DELAY_S, LANES, OPTION, REDIS_URL, drive_option, run
from msgspec import Struct
from redis.asyncio import Redis
from with_mesh import settings

from mesh import Class, Limit, Mesh, Operations, Transaction, join

DEADLINE = timedelta(seconds=10)
TO = Class("B")

table = Operations("bench")
effects = table.hash("effects", int, int)


class Number(Struct):
    """A request, and its reply."""

    number: int


class InLane(Struct):
    """A request of a lane."""

    number: int
    lane: int


@table.command
async def effect(tx: Transaction, body: Number) -> Number:
    tx.add(effects[body.number])
    return body


@table.command(limit=Limit(by="lane", concurrency=1))
async def effect_in_lane(tx: Transaction, body: InLane) -> Number:
    tx.add(effects[body.number])
    return Number(body.number)


async def client() -> None:
    async with join(table, settings=settings("A")) as mesh:

        async def plain(number: int) -> int:
            return (await mesh.call(effect, Number(number), to=TO, deadline=DEADLINE)).number

        async def keyed(number: int) -> int:
            return (await mesh.call(effect, Number(number), to=TO, deadline=DEADLINE, key=f"key-{number}")).number

        async def in_lane(number: int) -> int:
            body = InLane(number, number % LANES)
            return (await mesh.call(effect_in_lane, body, to=TO, deadline=DEADLINE)).number

        async def delayed(number: int) -> int:
            await mesh.send(effect, Number(number), to=TO, after=timedelta(seconds=DELAY_S))
            return number

        call = {"key": keyed, "lane": in_lane}.get(OPTION, plain)
        async with Redis.from_url(REDIS_URL, single_connection_client=True) as redis:
            await drive_option(call, delayed, Counter(mesh, redis).count)


class Counter:
    """Counts the requests that have run in the database of the worker."""

    def __init__(self, mesh: Mesh, redis: Redis) -> None:
        self.mesh, self.redis = mesh, redis
        self.key = ""

    async def count(self) -> int:
        """Return how many requests have run."""
        if not self.key:
            (database,) = [member.database for member in await self.mesh.roster() if member.cls == TO.name]
            await self.redis.select(database)
            self.key = f"db{database}:{effects}"
        return await self.redis.hlen(self.key)


async def worker() -> None:
    async with join(table, settings=settings("B")):
        await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    run(worker() if sys.argv[1] == "worker" else client())
