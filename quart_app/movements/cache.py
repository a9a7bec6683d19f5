"""A cache in RAM with a size and a ttl; concurrent callers for one key share one load."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps at most `size` loaded values for `ttl_s` seconds. A full cache drops the least recently used value.

    The cache keeps neither None (not found) nor a failure, because the next load may succeed.
    """

    def __init__(
        self,
        load: Callable[[K], Coroutine[Any, Any, V | None]],
        *,
        size: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # `size` 0: nothing is kept, and callers share only the loads under way.
        self._load, self._size, self._ttl_s, self._clock = load, size, ttl_s, clock
        #: key -> when the value expires, and the value; the least recently used one first
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()
        #: key -> the load that later callers share
        self._load_task_by_key: dict[K, asyncio.Task[V | None]] = {}
        #: all loads under way, also those whose key was forgotten
        self._load_tasks: set[asyncio.Task[V | None]] = set()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: K) -> V | None:
        """Return the value, cached or loaded. Raises what `load` raises."""
        expires_at_s, value = self._entries.get(key, (0.0, None))
        if value is not None and self._clock() < expires_at_s:
            self._entries.move_to_end(key)
            return value
        # Shielded: a caller that is cancelled must not cancel the load for the others.
        return await asyncio.shield(self._load_task_by_key.get(key) or self._start_load(key))

    def forget(self, key: K) -> None:
        """Drop a value that has changed. A load under way may return the old value, so later calls start a new load."""
        self._entries.pop(key, None)
        self._load_task_by_key.pop(key, None)

    async def close(self) -> None:
        """Cancel all loads that are under way."""
        for task in self._load_tasks:
            task.cancel()
        if self._load_tasks:
            await asyncio.wait(self._load_tasks)

    def _start_load(self, key: K) -> asyncio.Task[V | None]:
        task = asyncio.create_task(self._load(key))
        self._load_tasks.add(task)
        self._load_task_by_key[key] = task
        task.add_done_callback(lambda finished_task: self._on_loaded(key, finished_task))
        return task

    def _on_loaded(self, key: K, finished_task: asyncio.Task[V | None]) -> None:
        """Store the value of a load that has ended, unless it failed, found nothing, or may be out of date."""
        self._load_tasks.discard(finished_task)
        # False if `forget` was called during the load: the value may be an old one.
        is_current = self._load_task_by_key.get(key) is finished_task
        if is_current:
            del self._load_task_by_key[key]
        if finished_task.cancelled() or finished_task.exception() is not None or not is_current:
            return
        value = finished_task.result()
        if value is not None:
            self._store_value(key, value)

    def _store_value(self, key: K, value: V) -> None:
        self._entries[key] = (self._clock() + self._ttl_s, value)
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
