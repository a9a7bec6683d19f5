"""docket: Redis streams; pub/sub announces results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta

from docket import Docket, Worker
from load import REDIS_URL, drive, run
from redis.asyncio import Redis

WAIT = timedelta(seconds=10)
#: A waiting caller and a handler hold a connection each; the pool's default of 100 would refuse more.
CONNECTIONS = 1000
store = Redis.from_url(REDIS_URL, max_connections=CONNECTIONS)


async def handle(number: int) -> int:
    await store.set(f"stored:{number}", number)
    return number


def open_docket() -> Docket:
    return Docket(name="bench", url=f"{REDIS_URL}?max_connections={CONNECTIONS}", execution_ttl=timedelta(seconds=60))


async def client() -> None:
    async with open_docket() as docket:
        docket.register(handle)

        async def call(number: int) -> int:
            execution = await docket.add(handle)(number)
            return await execution.get_result(timeout=WAIT)

        await drive(lambda in_flight: call)


async def worker(*functions: Callable) -> None:
    interval = timedelta(milliseconds=int(os.environ.get("BENCH_DOCKET_INTERVAL_MS", "250")))
    async with open_docket() as docket:
        for function in functions:
            docket.register(function)
        async with Worker(docket, concurrency=256, minimum_check_interval=interval) as running:
            await running.run_forever()


if __name__ == "__main__":
    run(worker(handle) if sys.argv[1] == "worker" else client())
