"""Turns: after conflicts at one key, requests run again one after the other.

If all requests with a conflict at one key ran again at once, all but one would have a conflict again: n requests would
run about n²/2 times. So each key has a queue of requests that wait to run again, first come, first served.

    conflict ----> queue: waits ---- its turn ----> runs again ----> ends: the next one gets the turn
                      ^                                |
                      |                                +--> conflict: keeps the turn, and runs again
                      |                                +--> holds the turn for too long: runs on without it, and the
                      |                                     next one gets the turn
                      +--- conflict without the turn --+

While others wait, a turn lasts at most RUNS_A_TURN times the shortest of the last runs at its key, or PATIENCE_S if
that is longer. So a handler that waits for something else holds up nobody for long, and on a slow machine, where all
runs take long, requests still run one after the other. If a request that lost its turn has a conflict again, it waits
for another turn.

Turns only save time; the check in the commit makes sure that no update is lost. Requests that run for the first time
need no turn. A request holds one turn at most, so there is no deadlock.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)

#: The least time that a turn may last while others wait for it.
PATIENCE_S = 0.25
#: A turn may last this many times the shortest of the last runs at its key.
RUNS_A_TURN = 4
#: How many of the last runs at a key are remembered.
RUNS_KNOWN = 8
#: Conflicts are counted for so many keys. Beyond that, the keys with the fewest conflicts are forgotten.
MOST_KEYS = 1000


class _Queue(Generic[W]):
    """The request that holds the turn at one key, and those that wait for it."""

    def __init__(self) -> None:
        self.holder: W | None = None
        self.waiting: dict[W, None] = {}
        self.timer: asyncio.TimerHandle | None = None
        #: when the current run of each request began: of the holder, and of those that ran on without the turn
        self.began: dict[W, float] = {}
        #: how long the last runs took, in seconds
        self.runs: deque[float] = deque(maxlen=RUNS_KNOWN)

    @property
    def patience_s(self) -> float:
        """How long a turn may last."""
        return max(PATIENCE_S, RUNS_A_TURN * min(self.runs, default=0.0))

    def end_run(self, work: W) -> None:
        """Take note of how long a run took."""
        began = self.began.pop(work, None)
        if began is not None:
            self.runs.append(asyncio.get_running_loop().time() - began)

    def stop_timer(self) -> None:
        """Let the holder keep its turn."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


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
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        if queue.holder == work:
            self._run(work, queue)
            return
        self.leave(work)
        self._key_of[work] = key
        queue.waiting[work] = None
        if queue.holder is None:
            self._next(key, queue)
        elif queue.timer is None:
            self._watch(key, queue)

    def leave(self, work: W) -> bool:
        """Give up the turn, or the place in the queue.

        Return whether the request was waiting, and so is not running.
        """
        queue = self._queues.get(key := self._key_of.pop(work, ""))
        if queue is None:
            return False
        if work in queue.waiting:
            del queue.waiting[work]
            if not queue.waiting:
                queue.stop_timer()
            return True
        queue.end_run(work)
        if queue.holder == work:
            self._next(key, queue)
        return False

    def _run(self, work: W, queue: _Queue[W]) -> None:
        queue.end_run(work)
        queue.began[work] = asyncio.get_running_loop().time()
        self._begin(work)

    def _next(self, key: str, queue: _Queue[W]) -> None:
        """Give the turn to the one that has waited longest; end the queue if nobody waits."""
        queue.stop_timer()
        queue.holder = next(iter(queue.waiting), None)
        if queue.holder is None:
            del self._queues[key]
            return
        del queue.waiting[queue.holder]
        self._run(queue.holder, queue)
        self._watch(key, queue)

    def _watch(self, key: str, queue: _Queue[W]) -> None:
        """Pass the turn on when it has lasted for too long, if somebody waits then."""
        if queue.waiting:
            queue.timer = asyncio.get_running_loop().call_later(queue.patience_s, self._next, key, queue)

    def _count(self, key: str) -> None:
        self.conflicts[key] += 1
        if len(self.conflicts) > MOST_KEYS:
            self.conflicts = Counter(dict(self.conflicts.most_common(MOST_KEYS // 2)))
