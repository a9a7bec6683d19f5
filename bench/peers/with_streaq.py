"""streaq: Redis streams; pub/sub announces results."""

from __future__ import annotations

import os
import sys

from load import REDIS_URL, drive, run
from streaq import Worker

worker = Worker(
    redis_url=REDIS_URL,
    redis_kwargs={"max_connections": 1000},
    concurrency=int(os.environ.get("BENCH_STREAQ_CONCURRENCY", "128")),
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(name="handle", ttl=60)
async def handle(number: int) -> int:
    await worker.redis.set(f"stored:{number}", number)
    return number


async def client() -> None:
    async def call(number: int) -> int:
        task = await handle.enqueue(number)
        return (await task.result(10)).result

    async with worker:
        await drive(lambda in_flight: call)


if __name__ == "__main__":
    worker.run_sync() if sys.argv[1] == "worker" else run(client())
