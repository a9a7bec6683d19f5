"""Time jumps where everybody waits, runs where something outside is at work, and moves when it is told to."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import uvloop

from mesh import Class, DeadlineExceeded, MeshError
from mesh.lease import holding
from mesh.raw import Body, Effects, Request, Store, Worker
from mesh.testing import MeshKit
from mesh.testing.clock import virtual_time

waiting = Worker()


@waiting.handles("waiting.sleep")
async def sleep(request: Request, store: Store, transaction: Effects) -> Body:
    await asyncio.sleep(request.body["seconds"])
    return {"at": request.at_ms}


@waiting.handles("waiting.compute")
async def compute(request: Request, store: Store, transaction: Effects) -> Body:
    await asyncio.to_thread(time.sleep, 0.3)
    return {}


async def test_a_wait_costs_no_time() -> None:
    """Sleeps and deadlines pass as fast as there is nothing else to do."""
    began = time.monotonic()
    async with MeshKit(waiting, replicas=2) as kit:
        before = kit.now
        with pytest.raises(DeadlineExceeded):
            await kit[0].replica.call(Class("B"), "waiting.sleep", {"seconds": 60})
        passed = kit.now - before
    assert timedelta(seconds=5) <= passed < timedelta(seconds=6)
    assert time.monotonic() - began < 4


async def test_a_day_passes_in_about_a_second() -> None:
    """Leases are held over it, and what waits for the end of the day wakes up."""
    async with MeshKit(waiting, replicas=3) as kit:
        woken = asyncio.create_task(asyncio.sleep(86_000))
        redis = kit.redis(1)
        await redis.set("db1:greetings:soon", "gone", px=3_600_000)
        await redis.set("db1:greetings:late", "here", px=90_000_000)
        began, before = time.monotonic(), kit.now
        await kit.advance(hours=24)
        assert time.monotonic() - began < 2
        assert woken.done()
        assert timedelta(hours=24) <= kit.now - before < timedelta(hours=24, minutes=1)
        assert await kit.read("greetings:soon", database=1) is None
        assert await kit.read("greetings:late", database=1) == "here"
        at = (await kit[0].replica.call(Class("B"), "waiting.sleep", {"seconds": 1}))["at"]
        assert at / 1000 == pytest.approx(kit.now.timestamp(), abs=2)
        assert [member.leased for member in await kit[0].roster()] == [True] * 3


async def test_days_pass_one_after_the_other() -> None:
    """Each jump starts where the last one ended."""
    async with MeshKit(waiting) as kit:
        for _ in range(5):
            await kit.advance(days=1)
        assert kit.now.day == 6
        await kit[0].replica.call(Class("A"), "waiting.sleep", {"seconds": 0})


async def test_time_does_not_jump_while_a_thread_works() -> None:
    """The request would be past its deadline before the work is done."""
    async with MeshKit(waiting) as kit:
        before = kit.now
        assert await kit[0].replica.call(Class("A"), "waiting.compute", {}, deadline_ms=1000) == {}
        assert kit.now - before < timedelta(seconds=1)


async def test_a_duration_has_jumps_and_real_waits_once() -> None:
    """A stopwatch of the mesh shows what the clock of the loop shows."""
    with virtual_time() as clock:
        began, before = clock.perf_counter(), clock.monotonic()
        await asyncio.to_thread(time.sleep, 0.3)
        await asyncio.sleep(60)
        assert clock.perf_counter() - began == pytest.approx(clock.monotonic() - before, abs=0.1)


async def test_time_does_not_jump_while_a_pool_of_the_test_works() -> None:
    """A pool that is not asyncio's is known by its threads."""
    async with MeshKit(waiting) as kit:
        before = kit.now
        with ThreadPoolExecutor(1) as pool:
            await asyncio.wrap_future(pool.submit(time.sleep, 0.6))
        assert timedelta(seconds=0.2) < kit.now - before < timedelta(seconds=1)


async def test_time_does_not_jump_while_a_peer_may_speak() -> None:
    """A program that the handler started, or a connection that it opened, says something in its own time."""
    async with MeshKit(waiting) as kit:
        before = kit.now
        program = await asyncio.create_subprocess_exec("sleep", "0.6")
        await program.wait()
        assert timedelta(seconds=0.2) < kit.now - before < timedelta(seconds=1)


async def test_the_clock_is_put_back() -> None:
    """Afterwards the loop's time goes on at its own speed, never back, and modules have their clock."""
    loop = asyncio.get_running_loop()
    async with MeshKit(waiting) as kit:
        await kit.advance(days=1)
        inside = loop.time()
    assert inside <= loop.time() < inside + 10
    assert holding.time is time  # type: ignore[attr-defined]
    began = time.monotonic()
    await asyncio.sleep(0.05)
    assert 0.04 < time.monotonic() - began < 5
    async with MeshKit(waiting) as kit:
        await kit[0].replica.call(Class("A"), "waiting.sleep", {"seconds": 1})


async def test_two_kits_do_not_share_a_clock() -> None:
    """The second one says so."""
    async with MeshKit(waiting):
        with pytest.raises(MeshError, match="another MeshKit"):
            async with MeshKit(waiting):
                raise AssertionError


def test_uvloop_is_named() -> None:
    """The error names uvloop, whose clock cannot be moved."""

    async def main() -> None:
        with virtual_time():
            raise AssertionError

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with pytest.raises(MeshError, match=r"uvloop\.Loop"):
            runner.run(main())
