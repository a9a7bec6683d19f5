"""Many deadlines, few timers."""

from __future__ import annotations

import asyncio

from mesh.requests.deadlines import STEP_S, Deadlines


async def test_what_is_still_there_expires_once_not_before_its_time_and_soon_after() -> None:
    """The order in which deadlines are added does not matter."""
    loop = asyncio.get_running_loop()
    expired: dict[str, float] = {}
    deadlines: Deadlines[str] = Deadlines(lambda name: expired.update({name: loop.time()}))
    ends = {name: loop.time() + seconds for name, seconds in (("late", 0.11), ("soon", 0.03), ("also soon", 0.031))}
    for name, end in ends.items():
        deadlines.add(name, end - loop.time())
    async with asyncio.timeout(5):
        while len(expired) < len(ends):
            await asyncio.sleep(0.005)
    assert all(expired[name] >= ends[name] for name in ends)
    assert expired["soon"] < expired["late"]


async def test_what_has_left_does_not_expire() -> None:
    """The other deadlines of its timer do."""
    expired: list[str] = []
    deadlines: Deadlines[str] = Deadlines(expired.append)
    deadlines.add("gone", 0.01).discard("gone")
    deadlines.add("here", 0.01)
    async with asyncio.timeout(5):
        while not expired:
            await asyncio.sleep(STEP_S)
    assert expired == ["here"]


async def test_thousands_of_deadlines_share_timers() -> None:
    """Each step of time has one timer, and a timer that has fired is not kept."""
    deadlines: Deadlines[int] = Deadlines(lambda number: None)
    for number in range(10_000):
        deadlines.add(number, 0.01)
    assert len(deadlines.steps) <= 10
    async with asyncio.timeout(5):
        while deadlines.steps:
            await asyncio.sleep(STEP_S)
