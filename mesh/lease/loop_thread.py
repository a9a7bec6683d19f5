"""A coroutine on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

#: Longest wait for the thread's end after its coroutine was cancelled. A thread that takes longer is left behind; as a
#: daemon it keeps no process alive.
END_S = 1.0


class LoopThread:
    """Runs one coroutine even while the caller's event loop is blocked.

        not started --run--> running --the coroutine ends, or `run` is cancelled--> over

    `main` is called in the thread. Two threads then share the objects it uses: replace shared state in one assignment,
    or hand it over with `call` and `call_back`.

    The thread gets its turn when the blocked loop sleeps or waits, and every 5 ms while it runs Python code. One call
    into C that keeps the interpreter's lock stops this thread for as long as it takes.
    """

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._main = main
        self._name = name
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._caller: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
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
        """Call something in the thread's loop soon. Do nothing if the thread has not begun or has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(callback)

    def call_back(self, callback: Callable[[], Any]) -> None:
        """Call something in the caller's loop soon. Raises RuntimeError when that loop is closed."""
        assert self._caller is not None
        self._caller.call_soon_threadsafe(callback)

    def _target(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._error = error
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            self.call_back(self._ended.set)

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        # When cancelled, `run` sets `_cancelled` and then reads `_loop`. Here the order is the opposite, so that at
        # least one of the two sees what the other has set.
        self._loop = asyncio.get_running_loop()
        if not self._cancelled:
            await self._main()

    def _cancel(self) -> None:
        assert self._task is not None
        self._task.cancel()
