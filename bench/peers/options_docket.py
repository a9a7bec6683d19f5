"""docket with its options: a task's key, a limit of one at a time for each lane, and tasks for later."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

from docket import ConcurrencyLimit
from load import DELAY_S, LANES, OPTION, drive_option, run
from with_docket import WAIT, open_docket, store, worker


async def effect(number: int) -> int:
    await store.hincrby("effects", str(number), 1)
    return number


async def effect_in_lane(number: int, lane: Annotated[int, ConcurrencyLimit(1)]) -> int:
    return await effect(number)


async def client() -> None:
    async with open_docket() as docket:
        docket.register(effect)
        docket.register(effect_in_lane)

        async def call(number: int) -> int:
            if OPTION == "lane":
                execution = await docket.add(effect_in_lane)(number, lane=number % LANES)
            else:
                name = f"key-{number}" if OPTION == "key" else None
                execution = await docket.add(effect, key=name)(number)
            return await execution.get_result(timeout=WAIT)

        async def delayed(number: int) -> int:
            due = datetime.now(UTC) + timedelta(seconds=DELAY_S)
            await docket.add(effect, when=due)(number)
            return number

        await drive_option(call, delayed, lambda: store.hlen("effects"))


if __name__ == "__main__":
    run(worker(effect, effect_in_lane) if sys.argv[1] == "worker" else client())
