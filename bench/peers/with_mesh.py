"""The mesh: one replica of class A calls, one of class B works. Both are complete members."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import structlog
from load import REDIS_URL, drive, run

from mesh import Class, MeshSettings, RedisSettings, join
from mesh.raw import Effects, Request, Store, Worker

worker_table = Worker()


@worker_table.handles("bench.store")
async def handle(request: Request, store: Store, transaction: Effects) -> dict[str, int]:
    number = request.body["number"]
    transaction.set(f"stored:{number}", number)
    return {"number": number}


def settings(cls: str) -> MeshSettings:
    os.environ["MESH_CLASS"] = cls
    return MeshSettings(redis=RedisSettings(url=REDIS_URL))


async def client() -> None:
    async with join(settings=settings("A")) as mesh:
        to = Class("B")

        async def call(number: int) -> int:
            return (await mesh.replica.call(to, "bench.store", {"number": number}, deadline_ms=10_000))["number"]

        await drive(lambda in_flight: call)


async def worker() -> None:
    async with join(worker_table, settings=settings("B")):
        await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    run(worker() if sys.argv[1] == "worker" else client())
