"""taskiq-redis: the recommended stream broker, which acknowledges; clients poll Redis for results."""

from __future__ import annotations

import os
import sys

from load import REDIS_URL, Call, drive, run
from redis.asyncio import Redis
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

BROKER = {"stream": RedisStreamBroker, "list": ListQueueBroker}[os.environ.get("BENCH_TASKIQ_BROKER", "stream")]
results = RedisAsyncResultBackend(redis_url=REDIS_URL, keep_results=False, result_ex_time=60)
broker = BROKER(url=REDIS_URL).with_result_backend(results)
#: Each handler that runs holds a connection; the pool's default of 100 would refuse more.
store = Redis.from_url(REDIS_URL, max_connections=1000)


@broker.task(task_name="handle")
async def handle(number: int) -> int:
    await store.set(f"stored:{number}", number)
    return number


def result_interval(in_flight: int) -> float:
    """Return the interval at which clients poll; the default of 0.2 s would delay answers."""
    return float(os.environ.get("BENCH_TASKIQ_INTERVAL") or (0.001 if in_flight == 1 else 0.002))


def calling_at(in_flight: int) -> Call:
    interval = result_interval(in_flight)

    async def call(number: int) -> int:
        task = await handle.kiq(number)
        return (await task.wait_result(check_interval=interval, timeout=10)).return_value

    return call


async def client() -> None:
    await broker.startup()
    try:
        await drive(calling_at)
    finally:
        await broker.shutdown()


def worker(module: str) -> None:
    from taskiq.__main__ import main

    options = ["--workers", "1", "--max-async-tasks", "256", "--no-parse", "--log-level", "ERROR"]
    sys.argv = ["taskiq", "worker", f"{module}:broker", *options]
    main()


if __name__ == "__main__":
    worker("with_taskiq") if sys.argv[1] == "worker" else run(client())
