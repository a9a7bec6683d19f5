"""A read that runs at most once per interval, however many callers wait for it, and never while no caller waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ticker(Generic[T]):
    """Reads something at most once per interval and hands each result to everybody who waits.

    There is no task in the background: the first caller who waits does the read, and the others share its result. So a
    caller who stops waiting leaves nothing behind. The ticks of a schedule are something else.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], interval_s: float) -> None:
        self._read = read
        self._interval_s = interval_s
        self._read_lock = asyncio.Lock()
        self._newest: T | None = None
        self._last_read_at = float("-inf")
        #: number of the newest result; 0 before the first result
        self.number = 0

    async def newest(self) -> T:
        """Return the newest result. If it is older than the interval, read anew first."""
        if time.monotonic() - self._last_read_at < self._interval_s and self._newest is not None:
            return self._newest
        return await self.next(self.number)

    def expire(self) -> None:
        """Let the next call read anew, because somebody has changed what is read."""
        self._last_read_at = float("-inf")

    async def next(self, after: int) -> T:
        """Wait until the newest result has a higher number than `after`, and return it. Raises what the read raises.

        A caller that waits for changes passes the number of the result that it has.
        """
        async with self._read_lock:
            if self.number <= after or self._newest is None:
                await asyncio.sleep(self._last_read_at + self._interval_s - time.monotonic())
                # The interval begins before the read, and a read that fails begins one, too. So failing reads do not
                # follow each other without a pause.
                self._last_read_at = time.monotonic()
                self._newest = await self._read()
                self.number += 1
            return self._newest
