"""Turns: after conflicts at one key, requests run again one after the other.

If all requests with a conflict at one key ran again at once, all but one would have a conflict again: n requests would
run about n²/2 times. So each key has a queue of requests that wait to run again, first come, first served.

    conflict ----> no queue at this key: runs again, and holds the turn ----> ends: the next one gets the turn
       |                                       |
       +-----> queue: waits ---- turn ---------+
                       +-------- PATIENCE_S without a turn passed on: runs again anyway

Turns only save time; the check in the commit makes sure that no update is lost. Requests that run for the first time
need no turn. A request holds one turn at most, so there is no deadlock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)

#: The longest time for which others wait for a turn. Then the next request runs as well.
PATIENCE_S = 0.25
#: Conflicts are counted for so many keys. Beyond that, the keys with the fewest conflicts are forgotten.
MOST_KEYS = 1000


class _Queue(Generic[W]):
    """The requests that hold the turn at one key (mostly one), and those that wait for it."""

    def __init__(self) -> None:
        self.holders: set[W] = set()
        self.waiting: dict[W, None] = {}
        self.timer: asyncio.TimerHandle | None = None


class Turns(Generic[W]):
    """The queues of one consumer; `begin` runs a request again."""

    def __init__(self, begin: Callable[[W], None]) -> None:
        self._begin = begin
        self._queues: dict[str, _Queue[W]] = {}
        self._key_of: dict[W, str] = {}
        #: by key: how many conflicts there were
        self.conflicts: Counter[str] = Counter()

    def take(self, work: W, key: str) -> None:
        """Run again after a conflict at a key, at once or when it is this request's turn."""
        self._count(key)
        if self._key_of.get(work) == key:
            self._begin(work)
            return
        self.leave(work)
        self._key_of[work] = key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
            self._pass_to(work, queue)
        else:
            queue.waiting[work] = None
            if queue.timer is None:
                self._watch(key, queue)

    def leave(self, work: W) -> bool:
        """Give up the turn, or the place in the queue.

        Return whether the request was waiting, and so is not running.
        """
        key = self._key_of.pop(work, None)
        if key is None:
            return False
        queue = self._queues[key]
        if work in queue.waiting:
            del queue.waiting[work]
            if not queue.waiting and queue.timer is not None:
                queue.timer.cancel()
                queue.timer = None
            return True
        queue.holders.discard(work)
        if queue.waiting:
            self._next(key, queue)
        elif not queue.holders:
            self._close(key, queue)
        return False

    def _pass_to(self, work: W, queue: _Queue[W]) -> None:
        queue.holders.add(work)
        self._begin(work)

    def _next(self, key: str, queue: _Queue[W]) -> None:
        following = next(iter(queue.waiting))
        del queue.waiting[following]
        self._pass_to(following, queue)
        self._watch(key, queue)

    def _watch(self, key: str, queue: _Queue[W]) -> None:
        """Let the next one run after PATIENCE_S, unless the turn is passed on before."""
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if queue.waiting:
            queue.timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._next, key, queue)

    def _close(self, key: str, queue: _Queue[W]) -> None:
        if queue.timer is not None:
            queue.timer.cancel()
        del self._queues[key]

    def _count(self, key: str) -> None:
        self.conflicts[key] += 1
        if len(self.conflicts) > MOST_KEYS:
            self.conflicts = Counter(dict(self.conflicts.most_common(MOST_KEYS // 2)))
