"""A thread with its own event loop, which runs one coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

#: Longest wait for the thread's end after its coroutine was cancelled. If the thread takes longer, `run` ends without
#: it; a longer wait would hold up the end of the membership. It is a daemon thread, so the process can end without it.
END_S = 1.0


class LoopThread:
    """Runs one coroutine even while the caller's event loop is blocked. `Lease` renews itself in such a thread.

        not started --run--> running --the coroutine ends, or `run` is cancelled--> over

    `main`, which returns the coroutine, is called in the new thread. Both threads then use the same objects. So change
    shared state in one assignment only, or let the other thread change it, by `call` and `call_back`.

    While the caller's thread runs Python code, Python lets the new thread run every 5 ms; while it sleeps or waits, at
    once. A call into C that keeps the interpreter's lock stops the new thread until the call returns.
    """

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._main = main
        self._name = name
        #: set in the caller's event loop when the coroutine has ended
        self._ended = asyncio.Event()
        #: what the coroutine raised
        self._error: BaseException | None = None
        #: the event loop that called `run`, and the loop and the task of the thread; None before they exist
        self._caller: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        #: whether `run` was cancelled
        self._cancelled = False

    async def run(self) -> None:
        """Run the coroutine to its end, and raise what it raises.

        When cancelled, cancel the coroutine and wait until the thread has ended.
        """
        self._caller = asyncio.get_running_loop()
        threading.Thread(target=self._target, name=self._name, daemon=True).start()
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            self._cancelled = True
            self.call(self._cancel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await self._ended.wait()
            raise
        if self._error is not None:
            raise self._error

    def call(self, callback: Callable[[], Any]) -> None:
        """Call something soon in the thread's event loop. Do nothing if the thread has not begun or has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(callback)

    def call_back(self, callback: Callable[[], Any]) -> None:
        """Call something soon in the event loop that called `run`. Raises RuntimeError if that loop is closed."""
        assert self._caller is not None
        self._caller.call_soon_threadsafe(callback)

    def _target(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # `run` raises it in the caller's thread
            self._error = error
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            self.call_back(self._ended.set)

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        # A cancelled `run` sets `_cancelled`, and then reads `_loop` to cancel this task. Here `_loop` is set before
        # `_cancelled` is read, so at least one of the two threads sees what the other has set.
        self._loop = asyncio.get_running_loop()
        if not self._cancelled:
            await self._main()

    def _cancel(self) -> None:
        assert self._task is not None
        self._task.cancel()
