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
        self._load, self._size, self._ttl_s, self._clock = load, size, ttl_s, clock
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._loading: dict[K, asyncio.Task[V | None]] = {}
        self._tasks: set[asyncio.Task[V | None]] = set()
        #: how many calls of `get` found a cached value, and how many loads were started
        self.hits = 0
        self.loads = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, key: K) -> V | None:
        """Return the value, cached or loaded. Raises what `load` raises."""
        expires, value = self._kept.get(key, (0.0, None))
        if value is not None and self._clock() < expires:
            self.hits += 1
            self._kept.move_to_end(key)
            return value
        # Shielded: a caller that is cancelled must not cancel the load for the others.
        return await asyncio.shield(self._loading.get(key) or self._start(key))

    def forget(self, key: K) -> None:
        """Drop a value that has changed. A load under way may return the old value, so later calls start a new load."""
        self._kept.pop(key, None)
        self._loading.pop(key, None)

    async def close(self) -> None:
        """Cancel all loads that are under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, key: K) -> asyncio.Task[V | None]:
        self.loads += 1
        task = asyncio.create_task(self._load(key))
        self._tasks.add(task)
        self._loading[key] = task
        task.add_done_callback(lambda done: self._loaded(key, done))
        return task

    def _loaded(self, key: K, done: asyncio.Task[V | None]) -> None:
        self._tasks.discard(done)
        current = self._loading.get(key) is done
        if current:
            del self._loading[key]
        if done.cancelled() or done.exception() is not None or not current:
            return
        value = done.result()
        if value is not None:
            self._keep(key, value)

    def _keep(self, key: K, value: V) -> None:
        self._kept[key] = (self._clock() + self._ttl_s, value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
