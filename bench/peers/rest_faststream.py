"""FastAPI in front of FastStream: `broker.request` to a list, the quickest of its queues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from faststream import FastStream
from faststream.redis import ListSub, RedisBroker
from redis.asyncio import Redis
from rest_engine import REDIS_URL, Items, factors, store
from rest_fastapi import application

logging.getLogger("quiet").setLevel(logging.ERROR)
#: Each request holds a connection for its reply; the pool's default of 100 would refuse more.
broker = RedisBroker(REDIS_URL, max_connections=1000, logger=logging.getLogger("quiet"))
redis = Redis.from_url(REDIS_URL)


@broker.subscriber(list=ListSub("values", polling_interval=0.01))
async def handle(items: Items) -> list[list[int]]:
    found = factors(items)
    await store(redis.pipeline(transaction=False), items, found)
    return found


async def compute(items: Items) -> list[list[int]]:
    return await (await broker.request(items, list="values", timeout=20.0)).decode()


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Connect only: the subscriber runs in the worker."""
    await broker.connect()
    yield
    await broker.stop()


app = application(compute, connected)

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(FastStream(broker).run())
