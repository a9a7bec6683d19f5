"""Rows 70 to 75: what waits, is tried again or runs by itself, while replicas die at its scripts or the clock steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from mesh import Class, Ticket
from mesh.later.retry import DEFER
from mesh.later.waking import CANCEL, SCHEDULE, TICK, WAKE
from mesh.wire.script import Script
from tests.support.faults import later_worker
from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.clock import COMPILER, ServerClock
from tests.support.faults.late import WORKERS, LateMesh, LateWorker, late_mesh
from tests.support.faults.later_worker import Mark
from tests.support.faults.matrix import Faults, row
from tests.support.faults.wire import Wire

#: Longest wait until a worker runs a script.
SCRIPT_S = 30.0

#: Lets a worker come to the script.
Provoke = Callable[[LateMesh], Awaitable[object]]


@contextlib.asynccontextmanager
async def loaded(faults: Faults, clock: ServerClock | None = None) -> AsyncIterator[LateMesh]:
    """A mesh under marks and ticks; in the end everything has happened once and nothing is left."""
    async with late_mesh(faults.folder / "late", faults.chance, faults.mutation, clock=clock) as mesh:
        loading = asyncio.create_task(mesh.load())
        try:
            yield mesh
        finally:
            loading.cancel()
            await asyncio.wait([loading])
        await mesh.settled()
        faults.note(mesh.judge())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that a worker does. Raises TooLate."""
    try:
        async with asyncio.timeout(SCRIPT_S):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError as error:
        raise TooLate(f"{what}: not within {SCRIPT_S:.0f} s") from error


async def first(
    mesh: LateMesh, arm: Callable[[Wire], None], is_done: Callable[[Wire], bool], provoke: Provoke
) -> LateWorker:
    """Arm all wires, and return the first worker that the fault meets; the others go on as if there was none."""
    armed = list(mesh.workers)
    for worker in armed:
        worker.wire.swallowed = 0
        arm(worker.wire)
    await provoke(mesh)
    await until(lambda: any(is_done(worker.wire) for worker in armed), "a worker runs the script")
    found = next(worker for worker in armed if is_done(worker.wire))
    for worker in armed:
        if worker is not found:
            worker.wire.restore()
    return found


async def before(mesh: LateMesh, sha: bytes, provoke: Provoke) -> None:
    """A worker dies before the server has the script."""
    await mesh.lose(await first(mesh, lambda wire: wire.black_hole_at(sha), lambda wire: wire.holds, provoke))


async def meanwhile(mesh: LateMesh, sha: bytes, provoke: Provoke) -> None:
    """A worker dies while the server runs the script: it never sees the answer."""
    await mesh.lose(await first(mesh, lambda wire: wire.lose(sha), lambda wire: wire.swallowed > 0, provoke))


async def after(mesh: LateMesh, sha: bytes, provoke: Provoke) -> None:
    """A worker dies with the answer in its hands."""
    await mesh.lose(await first(mesh, lambda wire: wire.watch(sha), lambda wire: wire.answered.is_set(), provoke))


async def lost(mesh: LateMesh, sha: bytes, provoke: Provoke) -> None:
    """The answer is lost on the way, and the worker asks again."""
    await first(mesh, lambda wire: wire.lose(sha), lambda wire: wire.swallowed > 0, provoke)


async def restarted(mesh: LateMesh, sha: bytes, provoke: Provoke) -> None:
    """The server is killed and starts again while the script is on its way."""
    worker = await first(mesh, lambda wire: wire.black_hole_at(sha), lambda wire: wire.holds, provoke)
    await asyncio.to_thread(mesh.server.kill)
    await asyncio.to_thread(mesh.server.start)
    worker.wire.restore()


WAYS = (before, meanwhile, after, lost, restarted)


async def every_way(faults: Faults, script: Script, provoke: Provoke) -> None:
    """Let workers come to a script and die there, each in another way."""
    async with loaded(faults) as mesh:
        for way in WAYS:
            await way(mesh, mesh.sha_of(script), provoke)
            await mesh.replace()


async def nothing(mesh: LateMesh) -> None:
    """The load is enough."""


async def failing(mesh: LateMesh) -> None:
    """Send marks. The first try of each fails."""
    for _ in range(50):
        await mesh.send(fails=1, after_ms=1)


@row(70, "kill -9 at wake.lua: before, in, after; its answer lost; Redis restarts")
async def test_row_70_what_is_due_is_woken_once(faults: Faults) -> None:
    """Each delayed request has one effect, also if several replicas try to wake it."""
    await every_way(faults, WAKE, nothing)


@row(71, "kill -9 at tick.lua: before, in, after; its answer lost; Redis restarts")
async def test_row_71_a_tick_runs_once(faults: Faults) -> None:
    """Each second has one tick, or is counted by the one that stands for it."""
    await every_way(faults, TICK, nothing)


@row(72, "kill -9 at defer.lua: before, in, after; its answer lost; Redis restarts")
async def test_row_72_a_try_that_failed_is_made_again_once(faults: Faults) -> None:
    """A request whose first try failed has one effect."""
    await every_way(faults, DEFER, failing)


@row(73, "kill -9 at cancel.lua: before, in, after; its answer lost; Redis restarts")
async def test_row_73_what_is_cancelled_never_runs(faults: Faults) -> None:
    """A request that `cancel` says it has removed never runs, and the other requests do."""
    tickets: list[Ticket] = []
    taking: list[asyncio.Task[bool]] = []

    async def take_back(mesh: LateMesh) -> None:
        for _ in range(6):
            body = Mark(f"taken-{len(tickets)}")
            tickets.append(await mesh.client.send(later_worker.mark, body, to=Class("A"), after=timedelta(hours=1)))
            call = mesh.client.call(later_worker.take_back, Mark(tickets[-1].key), to=Class("A"))
            taking.append(asyncio.create_task(call))

    async with late_mesh(faults.folder / "late", faults.chance, faults.mutation) as mesh:
        for way in WAYS:
            await way(mesh, mesh.sha_of(CANCEL), take_back)
            await mesh.replace()
            answers = await asyncio.gather(*taking, return_exceptions=True)
            taking.clear()
            if way is lost and answers != [True] * 6:
                raise Broken(f"of 6 requests that were removed it is said: {answers}")
        for ticket in tickets:
            # After the death of the one who removed it, it is not known whether it was removed; it is over now.
            await mesh.client.cancel(ticket)
        await mesh.settled()
        faults.note(mesh.judge())
        books = await mesh.client.books()
        if books["cancelled"] != len(tickets):
            raise Broken(f"of {len(tickets)} requests {books['cancelled']} were removed")


@row(74, "kill -9 at schedule.lua, when replicas join: before, in, after; all down over ticks; Redis restarts")
async def test_row_74_a_schedule_is_recorded_without_losing_ticks(faults: Faults) -> None:
    """A replica that joins neither repeats a tick nor skips those that passed while nobody was live."""
    async with loaded(faults) as mesh:
        sha = mesh.sha_of(SCHEDULE)
        for way in (before, meanwhile, after, lost):
            worker = await mesh.add(held_at=SCHEDULE)
            wire = worker.wire
            await until(lambda: wire.holds, "the schedule is recorded")  # noqa: B023
            if way is not before:
                wire.restore()
                wire.watch(sha) if way is after else wire.lose(sha)
                await until(lambda: wire.answered.is_set() or wire.swallowed > 0, "it is answered")  # noqa: B023
            if way is lost:
                await mesh.live(WORKERS + 1)
            await mesh.lose(worker)
        for worker in list(mesh.workers):
            await mesh.lose(worker)
        await asyncio.sleep(4)
        for _ in range(WORKERS):
            await mesh.add()
        await mesh.live(WORKERS)
        await asyncio.to_thread(mesh.server.kill)
        await asyncio.to_thread(mesh.server.start)
        await mesh.live(WORKERS)
        await asyncio.sleep(3)


@pytest.mark.skipif(not COMPILER, reason="no C compiler here")
@row(75, "the server's clock steps forward 60 s, and back, under delays, tries and ticks")
async def test_row_75_a_step_of_the_clock_repeats_nothing(faults: Faults) -> None:
    """Requests that became due begin at once; ticks go on when the clock is where it was, and none is repeated."""
    clock = ServerClock(faults.folder / "clock")
    async with loaded(faults, clock) as mesh:
        await asyncio.sleep(3)
        waits = [await mesh.send(after_ms=50_000) for _ in range(20)]
        clock.step(60)
        await asyncio.sleep(1)
        await mesh.live(WORKERS)
        await asyncio.sleep(3)
        with mesh.server.redis() as admin:
            begun = admin.hkeys("shared:late:marks")
        if not set(waits) <= set(begun):
            raise Broken("what became due has not begun")
        clock.step(0)
        await asyncio.sleep(1)
        await mesh.live(WORKERS)
        # Ticks stand still until the clock is where it was.
        await asyncio.sleep(66)
