"""The mesh: one replica of class A calls, one of class B works. Both are complete members."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from datetime import timedelta

import structlog
from load import REDIS_URL, drive, run
from msgspec import Struct

from mesh import Class, MeshSettings, Operations, RedisSettings, Transaction, join
from mesh.raw import Effects, Request, Store, Worker

#: The same with typed operations, where set.
TYPED = bool(os.environ.get("BENCH_TYPED"))

worker_table = Worker()


@worker_table.handles("bench.store")
async def handle(request: Request, store: Store, transaction: Effects) -> dict[str, int]:
    number = request.body["number"]
    transaction.set(f"stored:{number}", number)
    return {"number": number}


stored = Operations("bench")
numbers = stored.values("stored", int, int)


class Number(Struct):
    """A body of the typed contender; its reply is the same."""

    number: int


@stored.command
async def put(tx: Transaction, body: Number) -> Number:
    tx.set(numbers[body.number], body.number)
    return Number(body.number)


def settings(cls: str) -> MeshSettings:
    os.environ["MESH_CLASS"] = cls
    return MeshSettings(redis=RedisSettings(url=REDIS_URL))


async def client() -> None:
    async with join(settings=settings("A")) as mesh:
        to, deadline = Class("B"), timedelta(seconds=10)

        async def named(number: int) -> int:
            return (await mesh.replica.call(to, "bench.store", {"number": number}, deadline_ms=10_000))["number"]

        async def typed(number: int) -> int:
            return (await mesh.call(put, Number(number), to=to, deadline=deadline)).number

        await drive(lambda in_flight: typed if TYPED else named)


async def worker() -> None:
    async with join(stored, worker_table, settings=settings("B")):
        await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    run(worker() if sys.argv[1] == "worker" else client())
