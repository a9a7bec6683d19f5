"""taskiq-redis with a scheduler for later tasks. It has no idempotency keys and no order per key."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from load import DELAY_S, LEVELS, OPTION, REDIS_URL, drive_option, run
from taskiq import TaskiqScheduler
from taskiq.api import run_scheduler_task
from taskiq_redis import ListRedisScheduleSource
from with_taskiq import broker, result_interval, store, worker

source = ListRedisScheduleSource(REDIS_URL)
#: The scheduler wakes up once a second, and looks for new tasks if this much time has passed since it last did.
LOOK = timedelta(milliseconds=500)


@broker.task(task_name="effect")
async def effect(number: int) -> int:
    await store.hincrby("effects", str(number), 1)
    return number


async def client() -> None:
    interval = result_interval(LEVELS[-1])

    async def call(number: int) -> int:
        task = await effect.kiq(number)
        return (await task.wait_result(check_interval=interval, timeout=10)).return_value

    async def delayed(number: int) -> int:
        due = datetime.now(UTC) + timedelta(seconds=DELAY_S)
        await effect.schedule_by_time(source, due, number)
        return number

    await broker.startup()
    scheduling = []
    if OPTION == "delayed":
        scheduler = TaskiqScheduler(broker, [source])
        scheduling.append(asyncio.create_task(run_scheduler_task(scheduler, interval=LOOK)))
    try:
        await drive_option(call, delayed, lambda: store.hlen("effects"))
    finally:
        for task in scheduling:
            task.cancel()
        await broker.shutdown()


if __name__ == "__main__":
    worker("options_taskiq") if sys.argv[1] == "worker" else run(client())
