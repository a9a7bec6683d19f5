"""arq: workers poll a sorted set of jobs; clients poll for results."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker
from load import REDIS_URL, Call, drive, run

SETTINGS = RedisSettings.from_dsn(REDIS_URL)
#: The default is half a second on both sides; a short delay makes it answer soon.
WORKER_DELAY_S = float(os.environ.get("BENCH_ARQ_WORKER_DELAY", "0.002"))


async def handle(context: dict, number: int) -> int:
    await context["redis"].set(f"stored:{number}", number)
    return number


def result_delay(in_flight: int) -> float:
    """Return the interval at which a client looks for its result."""
    return float(os.environ.get("BENCH_ARQ_DELAY") or {1: 0.001, 16: 0.005}.get(in_flight, 0.02))


def calling_at(in_flight: int, pool: object) -> Call:
    delay = result_delay(in_flight)

    async def call(number: int) -> int:
        job = await pool.enqueue_job("handle", number)
        return await job.result(timeout=10, poll_delay=delay)

    return call


async def client() -> None:
    pool = await create_pool(SETTINGS)
    try:
        await drive(lambda in_flight: calling_at(in_flight, pool))
    finally:
        await pool.aclose()


def worker(function: Callable) -> None:
    import uvloop

    asyncio.set_event_loop(uvloop.new_event_loop())
    Worker(
        functions=[function],
        redis_settings=SETTINGS,
        max_jobs=256,
        poll_delay=WORKER_DELAY_S,
        keep_result=60,
        log_results=False,
    ).run()


if __name__ == "__main__":
    worker(handle) if sys.argv[1] == "worker" else run(client())
