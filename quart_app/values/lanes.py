"""Processes that compute for the factor pool: one set of them for each kind of work.

A lane is a set of processes of one priority. Each kind of work has its own lane. So a number of a few milliseconds
never waits for one of a few minutes, and neither waits for a job of an hour. The library pebble runs the processes, and
restarts those that were killed. The processes are forked from a fork server and not from the replica, so they inherit
no socket or connection of the replica.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

from pebble import ProcessExpired, ProcessPool

from quart_app.values import child
from quart_app.values.metrics import LaneMetrics

#: Returns a function and its arguments, which a process then runs. The lane calls this when a process is free, because
#: the arguments may depend on the time. This is no call of the glossary.
Call = Callable[[], tuple[Any, ...]]

#: Pebble looks for cancelled calls every tenth of a second. This long after it has noticed one, it has certainly killed
#: the process. With less time, the next call may get a slot before its process is free; with more, slots stay unused.
_KILLED_AFTER_S = 0.25
#: The longest time to wait until pebble notices a cancellation. After that, the slot of the call is released although
#: its process may still run: the next call may then wait for a process, but the lane does not lose the slot. With a
#: shorter time, calls would wait so more often; with a longer one, the slot would be lost for longer.
_LONGEST_NOTICE_S = 5.0


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Lane:
    """Some processes of one priority. Each runs one call at a time; further calls wait in the order of asking.

    A higher `niceness`, up to 19, is a lower priority, as in nice(2).
    """

    def __init__(self, process_count: int, *, niceness: int, metrics: LaneMetrics) -> None:
        self._metrics = metrics
        self._process_count = process_count
        self._niceness = niceness
        #: one slot for each process: the right to use it
        self._slots = asyncio.Semaphore(process_count)
        #: how many calls have a slot or wait for one
        self.call_count = 0
        #: keeps two calls from starting two pools
        self._start_lock = asyncio.Lock()
        self._pool: ProcessPool | None = None
        #: tasks that release the slots of cancelled calls
        self._pending_releases: set[asyncio.Task[None]] = set()

    @property
    def idle_count(self) -> int:
        """How many processes no call uses or waits for."""
        return max(0, self._process_count - self.call_count)

    async def run(self, call: Call) -> Any:
        """Run in a process the function that `call` returns. If the caller is cancelled, the process is killed.

        Raises what the function raises, and ProcessExpired if the process died.
        """
        await self._take_slot()
        future: concurrent.futures.Future[Any] | None = None
        try:
            pool = await self._running_pool()
            function, *arguments = call()
            with self._metrics.computing():
                future = pool.schedule(function, args=arguments)
                return await asyncio.wrap_future(future)
        except (ProcessExpired, concurrent.futures.BrokenExecutor):
            self._metrics.died.inc()
            raise
        finally:
            self._release_slot_when_free(future)

    async def _take_slot(self) -> None:
        """Wait for a free slot."""
        self.call_count += 1
        try:
            with self._metrics.waiting.track_inprogress():
                await self._slots.acquire()
        except asyncio.CancelledError:
            self.call_count -= 1
            raise

    def _release_slot(self) -> None:
        """Let the next call have the slot."""
        self.call_count -= 1
        self._slots.release()

    async def stop(self) -> None:
        """Kill the calls that are running, and end the processes."""
        # All processes are killed here, so no slot has to wait for that.
        for release_task in self._pending_releases:
            release_task.cancel()
        if self._pool is not None:
            await asyncio.to_thread(_stop_pool, self._pool)
            self._pool = None

    async def _running_pool(self) -> ProcessPool:
        """Return pebble's pool. Start one if there is none yet, or if the former one is no longer active."""
        async with self._start_lock:
            if self._pool is None or not self._pool.active:
                former_pool, self._pool = self._pool, _new_pool(self._process_count, self._niceness)
                await asyncio.to_thread(_start_processes, self._pool)
                if former_pool is not None:
                    await asyncio.to_thread(_stop_pool, former_pool)
            return self._pool

    def _release_slot_when_free(self, future: concurrent.futures.Future[Any] | None) -> None:
        """Release the slot once its process is free. `future` is the call's; None if no process has got the call.

        The process of a cancelled call is free when it was killed.
        """
        if future is None or not future.cancelled():
            self._release_slot()
            return
        self._metrics.killed.inc()
        task = asyncio.get_running_loop().create_task(self._release_slot_when_killed(future))
        self._pending_releases.add(task)
        task.add_done_callback(self._pending_releases.discard)

    async def _release_slot_when_killed(self, future: concurrent.futures.Future[Any]) -> None:
        """Wait until the process of a cancelled call was killed, then release its slot.

        Pebble marks the call as done when it notices the cancellation, and kills the process a moment later.
        """
        end_s = time.monotonic() + _LONGEST_NOTICE_S
        try:
            while not concurrent.futures.wait([future], 0).done and time.monotonic() < end_s:
                # A longer pause would release the slot later; a shorter one costs more looks.
                await asyncio.sleep(_KILLED_AFTER_S / 5)
            await asyncio.sleep(_KILLED_AFTER_S)
        finally:
            self._release_slot()


def _new_pool(process_count: int, niceness: int) -> ProcessPool:
    """Return a pool of pebble whose processes have not started yet."""
    context = multiprocessing.get_context("forkserver")
    # The fork server imports these modules once, and each process that it forks has them. It skips a missing one.
    context.set_forkserver_preload([child.__name__, "cypari"])
    return ProcessPool(process_count, initializer=child.prepare, initargs=(niceness,), context=context)


def _start_processes(pool: ProcessPool) -> None:
    """Start the processes. This blocks while the fork server imports modules, so it must not run on the event loop."""
    # Pebble starts the processes when this property is read.
    _ = pool.active


def _stop_pool(pool: ProcessPool) -> None:
    """Kill the processes and wait until they have ended, which blocks."""
    # In pebble, `stop` has no annotations.
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()
