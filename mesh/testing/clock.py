"""A clock for tests: while every task waits, the clock jumps to the next timer.

`virtual_time` replaces the method `time` of the running event loop and `select` of its selector. In the modules of
`mesh` and `fakeredis` it replaces the name `time`. All other code, such as the code under test, keeps the real clock.

    select --something is ready--> no time passes
       |
       +--everybody waits, and only timers can wake them--> the clock jumps to the next timer
       +--a thread, a pool or a connection may wake them--> the clock runs at its own speed

Without this clock a thread renews each lease. The thread would follow the real clock, so here a task renews the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time as real_time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from mesh.errors import MeshError
from mesh.lease import holding

#: The date at which a kit's clock begins: the same in each run.
BEGIN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
#: How the names of threads of the event loop's own pool begin. `_count_pool_call` knows when such a thread works;
#: between two calls it stays alive, and wakes nobody.
_POOL_PREFIX = "asyncio_"


class TaskNotThread:
    """Stands in for `LoopThread`, which runs a coroutine in a thread with an event loop of its own.

    Here the coroutine runs in the caller's event loop.
    """

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        # The parameters are those of `LoopThread`. Here no thread needs the name.
        self._main = main

    async def run(self) -> None:
        """Run the coroutine to its end."""
        await self._main()

    def call(self, callback: Callable[[], Any]) -> None:
        """Let the event loop call something soon."""
        asyncio.get_running_loop().call_soon(callback)

    #: `LoopThread` uses the event loop of its thread for `call`, and that of its caller for `call_back`. Here both are
    #: one loop.
    call_back = call


class Clock:
    """The clock of one event loop. It also stands in for the module `time`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if not hasattr(loop, "_selector"):
            loop_class = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise MeshError(
                f"MeshKit cannot move the clock of {loop_class}: run this test on asyncio's own event loop, or with "
                'MeshKit(..., redis="redis://...") in real time'
            )
        self._loop: Any = loop
        self._selector = self._loop._selector
        self._real_select = self._selector.select
        self._loop_time_at_start = loop.time()
        #: seconds that have passed on this clock
        self._passed_s = 0.0
        #: the seconds of `_passed_s` in which the clock ran at real speed
        self._passed_real_s = 0.0
        #: number of calls in a pool of threads or processes that have not ended
        self._pool_call_count = 0
        #: the futures of `wait_until_settled`, until the event loop has nothing to do but wait
        self._settle_waiters: list[asyncio.Future[None]] = []
        # Threads and connections that exist already do not count as ones that may wake a task.
        self._threads_at_start = set(threading.enumerate())
        self._connection_count_at_start = len(self._selector.get_map())

    def time(self) -> float:
        """Return the date, in seconds since 1970."""
        return BEGIN + self._passed_s

    def monotonic(self) -> float:
        """Return the time of the event loop."""
        return self._loop_time_at_start + self._passed_s

    def perf_counter(self) -> float:
        """Return the real time plus the seconds that this clock has jumped over.

        So the measured duration of a handler includes the real time of its code, during which this clock stands still.
        """
        return real_time.perf_counter() + self._passed_s - self._passed_real_s

    def __getattr__(self, name: str) -> Any:
        """Return anything else of the module `time`, such as `sleep`."""
        return getattr(real_time, name)

    def jump(self, seconds: float) -> None:
        """Move the clock forward at once."""
        self._passed_s += seconds

    async def wait_until_settled(self) -> None:
        """Wait until every task waits for a timer, or for something outside of the event loop."""
        waiter = self._loop.create_future()
        self._settle_waiters.append(waiter)
        await waiter

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the event loop use this clock for a block. Afterwards the loop's time runs on at its real speed."""
        run_in_executor = self._loop.run_in_executor
        self._loop.time = self.monotonic
        self._selector.select = self._select_or_jump
        self._loop.run_in_executor = lambda *arguments: self._count_pool_call(run_in_executor(*arguments))
        try:
            yield
        finally:
            # How far this clock is ahead of the real one. The loop keeps this, so that its time never goes back.
            ahead_s = self.monotonic() - real_time.monotonic()
            self._loop.time = lambda: real_time.monotonic() + ahead_s
            self._selector.select = self._real_select
            # The loop has the method of its class again.
            del self._loop.run_in_executor
            for waiter in self._settle_waiters:
                waiter.cancel()

    def _count_pool_call(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """Count a call that runs in a pool until its future is done."""
        self._pool_call_count += 1
        future.add_done_callback(self._uncount_pool_call)
        return future

    def _uncount_pool_call(self, _: object) -> None:
        """Count a call of a pool as ended."""
        self._pool_call_count -= 1

    def _select_or_jump(self, timeout: float | None = None) -> Any:
        """Stand in for the selector's `select`: return the events that are there, or let time pass."""
        # A time-out of 0 or less: a callback is ready or a timer is due, so the loop does not wait.
        events = self._real_select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        # Here every task waits, so those that wait for this go on before any time passes.
        if self._settle_waiters:
            waiters, self._settle_waiters = self._settle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            return events
        # A time-out of None: there is no timer to jump to.
        if timeout is None or self._may_be_woken():
            select_began_s = real_time.monotonic()
            events = self._real_select(timeout)
            waited_s = real_time.monotonic() - select_began_s
            self._passed_s += waited_s
            self._passed_real_s += waited_s
            return events
        self._passed_s += timeout
        return events

    def _may_be_woken(self) -> bool:
        """Return whether something outside of the event loop may wake a task: a pool, a thread, or a connection."""
        return (
            self._pool_call_count > 0
            or len(self._selector.get_map()) > self._connection_count_at_start
            or any(
                thread not in self._threads_at_start and not thread.name.startswith(_POOL_PREFIX)
                for thread in threading.enumerate()
            )
        )


@contextlib.contextmanager
def virtual_time() -> Iterator[Clock]:
    """Let the running event loop, the mesh and fakeredis use a clock that jumps.

    Raises MeshError if another kit uses such a clock, or if the clock of this kind of event loop cannot be replaced.
    """
    if isinstance(vars(holding)["time"], Clock):
        raise MeshError("another MeshKit of this process has the clock; leave its block first")
    clock = Clock(asyncio.get_running_loop())
    with contextlib.ExitStack() as stack:
        # Name -> the object that modules import under it, and what takes its place. If a module has another object
        # under this name, nothing changes there.
        stand_ins = {"time": (real_time, clock), "perf_counter": (real_time.perf_counter, clock.perf_counter)}
        for module_name, module in list(sys.modules.items()):
            for name, (real, stand_in) in stand_ins.items():
                if module_name.partition(".")[0] in ("mesh", "fakeredis") and vars(module).get(name) is real:
                    stack.enter_context(_replaced(module, name, stand_in))
        stack.enter_context(_replaced(holding, "LoopThread", TaskNotThread))
        stack.enter_context(clock.in_use())
        yield clock


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Give a name of a module another value until the block ends."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
