"""nats-py on a NATS server: nothing is durable, the handler stores in its own memory. This is the ceiling.

With BENCH_STORE=redis the handler stores in Redis, as those of all others do.
"""

from __future__ import annotations

import asyncio
import os
import sys

import nats
from load import NATS_URL, REDIS_URL, drive, run
from nats.aio.msg import Msg
from redis.asyncio import Redis

IN_REDIS = os.environ.get("BENCH_STORE") == "redis"


async def client() -> None:
    connection = await nats.connect(NATS_URL)

    async def call(number: int) -> int:
        answer = await connection.request("bench", b"%d" % number, timeout=10)
        return int(answer.data)

    await drive(lambda in_flight: call)
    await connection.close()


def handler_in_memory() -> object:
    stored: dict[bytes, bytes] = {}

    async def handle(message: Msg) -> None:
        stored[b"stored:" + message.data] = message.data
        await message.respond(message.data)

    return handle


def handler_in_redis() -> object:
    store = Redis.from_url(REDIS_URL, max_connections=1000)
    running: set[asyncio.Task] = set()

    async def work(message: Msg) -> None:
        await store.set(b"stored:" + message.data, message.data)
        await message.respond(message.data)

    async def handle(message: Msg) -> None:
        # A subscription handles its messages in order; tasks let them wait for Redis concurrently.
        task = asyncio.create_task(work(message))
        running.add(task)
        task.add_done_callback(running.discard)

    return handle


async def worker() -> None:
    connection = await nats.connect(NATS_URL)
    await connection.subscribe("bench", queue="workers", cb=handler_in_redis() if IN_REDIS else handler_in_memory())
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(worker() if sys.argv[1] == "worker" else client())
