"""FastAPI in front of taskiq: its stream broker, which acknowledges; results are polled for."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from rest_engine import REDIS_URL, Items, factors, store
from rest_fastapi import application
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

#: The default of 0.2 s would delay answers. Many requests that poll often hold each other up.
POLL_S = {1: 0.001, 32: 0.005}.get(int(os.environ.get("BENCH_CONNECTIONS", "0")), 0.03)
results = RedisAsyncResultBackend(
    redis_url=REDIS_URL, keep_results=False, result_ex_time=60, max_connection_pool_size=1000
)
broker = RedisStreamBroker(url=REDIS_URL, max_connection_pool_size=1000).with_result_backend(results)
redis = Redis.from_url(REDIS_URL)


@broker.task(task_name="handle")
async def handle(items: Items) -> list[list[int]]:
    found = factors(items)
    await store(redis.pipeline(transaction=False), items, found)
    return found


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()


async def compute(items: Items) -> list[list[int]]:
    task = await handle.kiq(items)
    return (await task.wait_result(check_interval=POLL_S, timeout=20)).return_value


app = application(compute, connected)

if __name__ == "__main__":
    from taskiq.__main__ import main

    options = ["--workers", "1", "--max-async-tasks", "256", "--no-parse", "--log-level", "ERROR"]
    sys.argv = ["taskiq", "worker", "rest_taskiq:broker", *options]
    main()
