"""FastAPI in front of arq: a job for each request, whose result is polled for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker
from rest_engine import REDIS_URL, Items, factors, store
from rest_fastapi import application

SETTINGS = RedisSettings.from_dsn(REDIS_URL)
SETTINGS.max_connections = 1000
#: The default is half a second on both sides. Many requests that poll often hold each other up.
POLL_S = {1: 0.001, 32: 0.01}.get(int(os.environ.get("BENCH_CONNECTIONS", "0")), 0.05)
pool = None


async def handle(context: dict, items: Items) -> list[list[int]]:
    found = factors(items)
    await store(context["redis"].pipeline(transaction=False), items, found)
    return found


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    global pool
    pool = await create_pool(SETTINGS)
    yield
    await pool.aclose()


async def compute(items: Items) -> list[list[int]]:
    job = await pool.enqueue_job("handle", items)
    return await job.result(timeout=20, poll_delay=POLL_S)


app = application(compute, connected)

if __name__ == "__main__":
    asyncio.set_event_loop(uvloop.new_event_loop())
    options = {"max_jobs": 256, "poll_delay": 0.002, "keep_result": 60, "log_results": False}
    Worker(functions=[handle], redis_settings=SETTINGS, **options).run()
