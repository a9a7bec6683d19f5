"""Many deadlines with few timers: those of the calls of one replica or client.

Nearly every call ends long before its deadline. To set and cancel a timer for each call would cost more than the way of
its reply through the event loop. So time is divided into steps, and all deadlines within one step share a timer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Length of a step, and so the most by which `expire` is late. With longer steps there are fewer timers.
STEP_S = 0.02


class Deadlines(Generic[T]):
    """Calls `expire` with each item whose deadline has passed: at most STEP_S late, never early."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        #: The items of each step that has a timer. Step n ends when the clock of the event loop shows n * STEP_S.
        self._items_by_step: dict[int, set[T]] = {}

    @property
    def steps(self) -> list[int]:
        """The numbers of the steps that have a timer; for tests."""
        return sorted(self._items_by_step)

    def add(self, item: T, seconds: float) -> set[T]:
        """Set an item's deadline, counted from now. To cancel it, remove the item from the set that is returned."""
        step = math.ceil((self._loop.time() + seconds) / STEP_S)
        items = self._items_by_step.get(step)
        if items is None:
            items = self._items_by_step[step] = set()
            self._loop.call_at(step * STEP_S, self._expire_step, step)
        items.add(item)
        return items

    def _expire_step(self, step: int) -> None:
        for item in list(self._items_by_step.pop(step)):  # a copy: `expire` may remove items from the set
            self._expire(item)
