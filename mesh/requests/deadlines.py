"""Many deadlines, few timers.

Nearly everything that waits is done long before its deadline, and a timer for each, set and cancelled, costs more than
the answer's way through the loop. So whatever ends within one step shares a timer, and leaves it by leaving a set.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: How much later than its deadline something may be told so.
STEP_S = 0.02


class Alarms(Generic[T]):
    """Calls `expire` with what is still there when its time is over, at most STEP_S later, never sooner."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._ends: dict[int, set[T]] = {}

    @property
    def steps(self) -> list[int]:
        """Those that have a timer."""
        return sorted(self._ends)

    def add(self, item: T, seconds: float) -> set[T]:
        """Have an item expire then; taken out of the set that is returned, it does not."""
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
