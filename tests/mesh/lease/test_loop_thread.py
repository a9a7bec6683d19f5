"""A coroutine in a thread of its own: how it begins, ends and is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mesh.lease.loop_thread import LoopThread
from tests.support.waiting import eventually

NAME = "loop-thread-test"


async def no_thread() -> bool:
    return all(thread.name != NAME for thread in threading.enumerate())


async def test_it_runs_while_the_callers_loop_is_blocked() -> None:
    """The thread exists for the time in which the caller's loop is blocked."""
    turns = 0

    async def main() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    running = asyncio.create_task(LoopThread(main, NAME).run())
    await asyncio.sleep(0.1)
    before = turns
    time.sleep(0.5)  # noqa: ASYNC251
    assert turns - before > 20
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(no_thread)


async def test_run_ends_with_the_coroutine_and_raises_its_error() -> None:
    """The parent of `run` learns of every end."""

    async def ends() -> None:
        await asyncio.sleep(0)

    async def fails() -> None:
        raise LookupError("from the thread")

    await LoopThread(ends, NAME).run()
    with pytest.raises(LookupError, match="from the thread"):
        await LoopThread(fails, NAME).run()
    await eventually(no_thread)


@pytest.mark.parametrize("after_s", [0, 0.0001, 0.001, 0.01, 0.1])
async def test_cancelled_at_any_moment_it_leaves_no_thread(after_s: float) -> None:
    """The coroutine cleans up in its thread before `run` is over, also if the thread's loop has not begun."""
    begun, cleaned = [], []

    async def main() -> None:
        begun.append(threading.current_thread().name)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(threading.current_thread().name)

    running = asyncio.create_task(LoopThread(main, NAME).run())
    await asyncio.sleep(0)
    time.sleep(after_s)  # noqa: ASYNC251
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert begun == cleaned
    await eventually(no_thread)


async def test_cancelled_before_its_thread_has_a_loop_it_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may begin late on a busy machine; nobody waits for its coroutine any more."""
    monkeypatch.setattr("mesh.lease.loop_thread.END_S", 0.05)
    go_on, begun = threading.Event(), []
    target = LoopThread._target

    def late(self: LoopThread) -> None:
        go_on.wait()
        target(self)

    monkeypatch.setattr(LoopThread, "_target", late)

    async def main() -> None:
        begun.append(1)

    running = asyncio.create_task(LoopThread(main, NAME).run())
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    await eventually(no_thread)
    assert begun == []


async def test_a_thread_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for its end has a deadline, and the thread keeps no process alive."""
    monkeypatch.setattr("mesh.lease.loop_thread.END_S", 0.1)
    go_on = threading.Event()

    async def stuck() -> None:
        go_on.wait()

    running = asyncio.create_task(LoopThread(stuck, NAME).run())
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 1)
    left = [thread.daemon for thread in threading.enumerate() if thread.name == NAME]
    go_on.set()
    assert left == [True]
    await eventually(no_thread)


def test_it_ends_when_the_callers_loop_was_closed_without_it() -> None:
    """`call_back` raises then, so the coroutine can see that nobody is left; its end disturbs nobody."""
    found: list[type[BaseException]] = []

    async def main() -> None:
        try:
            while True:
                thread.call_back(lambda: None)
                await asyncio.sleep(0.01)
        except RuntimeError as error:
            found.append(type(error))
            raise

    thread = LoopThread(main, NAME)
    loop = asyncio.new_event_loop()
    abandoned = loop.create_task(thread.run())
    loop.run_until_complete(asyncio.sleep(0.05))
    # No cancellation, as if the loop's owner had been torn away.
    abandoned._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    asyncio.run(eventually(no_thread))
    assert found == [RuntimeError]


async def test_calls_cross_between_the_threads() -> None:
    """Each runs in the thread whose loop it was put on."""
    names: list[str] = []
    done = asyncio.Event()
    wake = asyncio.Event()

    def here() -> None:
        names.append(threading.current_thread().name)
        done.set()

    async def main() -> None:
        await wake.wait()
        thread.call_back(here)

    def there() -> None:
        names.append(threading.current_thread().name)
        wake.set()

    thread = LoopThread(main, NAME)
    running = asyncio.create_task(thread.run())

    async def begun() -> bool:
        return thread._task is not None

    await eventually(begun)
    thread.call(there)
    await done.wait()
    await running
    assert names == [NAME, threading.current_thread().name]
    thread.call(there)  # after its end: nothing happens
    assert len(names) == 2
