"""Many deadlines, few timers.

Most waits end long before their deadline. To set and cancel a timer for each costs more than to pass the answer through
the event loop. So all items whose deadlines are within one step share a timer, and an item leaves by leaving a set.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: How much later than its deadline an item may expire.
STEP_S = 0.02


class Alarms(Generic[T]):
    """Calls `expire` with each item that is still there at its deadline, at most STEP_S later and never earlier."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._ends: dict[int, set[T]] = {}

    @property
    def steps(self) -> list[int]:
        """The steps that have a timer."""
        return sorted(self._ends)

    def add(self, item: T, seconds: float) -> set[T]:
        """Let an item expire after some seconds, unless the caller removes it from the returned set."""
        step = math.ceil((self._loop.time() + seconds) / STEP_S)
        items = self._ends.get(step)
        if items is None:
            items = self._ends[step] = set()
            self._loop.call_at(step * STEP_S, self._end, step)
        items.add(item)
        return items

    def _end(self, step: int) -> None:
        for item in list(self._ends.pop(step)):
            self._expire(item)
