"""arq with its options: a job's id as its idempotency key, and jobs for later. It has no order per key."""

from __future__ import annotations

import sys

from arq import create_pool
from load import DELAY_S, LEVELS, OPTION, drive_option, run
from with_arq import SETTINGS, result_delay, worker


async def effect(context: dict, number: int) -> int:
    await context["redis"].hincrby("effects", str(number), 1)
    return number


async def client() -> None:
    pool = await create_pool(SETTINGS)
    delay = result_delay(LEVELS[-1])

    async def call(number: int) -> int:
        name = f"key-{number}" if OPTION == "key" else None
        job = await pool.enqueue_job("effect", number, _job_id=name)
        return await job.result(timeout=10, poll_delay=delay)

    async def delayed(number: int) -> int:
        await pool.enqueue_job("effect", number, _defer_by=DELAY_S)
        return number

    try:
        await drive_option(call, delayed, lambda: pool.hlen("effects"))
    finally:
        await pool.aclose()


if __name__ == "__main__":
    worker(effect) if sys.argv[1] == "worker" else run(client())
