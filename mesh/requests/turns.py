"""Turns: after conflicts at one key, requests run again one after the other.

If all requests with a conflict at one key ran again at once, all but one would have a conflict again: n requests would
run about n²/2 times. So each key has a queue of requests that wait to run again, first come, first served.

    conflict ----> queue: waits ---- its turn ----> runs again ----> ends: the next one gets the turn
                      ^                                |
                      |                                +--> conflict: keeps the turn, and runs again
                      |                                +--> holds the turn for too long: runs on without it, and the
                      |                                     next one gets the turn
                      +--- conflict without the turn --+

While others wait, a turn lasts at most RUNS_PER_TURN times the shortest of the last runs at its key, or PATIENCE_S if
that is longer. So a handler that waits for something else does not hold up the others for long. On a slow machine all
runs take long, so turns may last longer, and requests still run one after the other. If a request that lost its turn
has a conflict again, it waits for another turn.

Turns only save time; the check in the commit makes sure that no update is lost. Requests that run for the first time
need no turn. A request holds one turn at most, so there is no deadlock.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)

#: A turn may last at least this long while others wait for it. If it ends too early, requests run side by side again,
#: and have conflicts; if it lasts too long, a slow handler holds up the others.
PATIENCE_S = 0.25
#: A turn may last this many times the shortest of the last runs at its key. A larger factor lets a slow handler hold up
#: the others for longer; with a smaller one, more turns end too early.
RUNS_PER_TURN = 4
#: How many of the last runs at a key are remembered: the shortest of them decides how long a turn may last. With more,
#: a turn follows a change of the handler's speed later; with fewer, single slow runs lengthen the turns.
RUNS_REMEMBERED = 8
#: Conflicts are counted for at most this number of keys, which bounds the memory that the counts take. Beyond it, the
#: keys with the fewest conflicts are forgotten.
MOST_KEYS = 1000


class _Queue(Generic[W]):
    """The request that holds the turn at one key, and the requests that wait for the turn."""

    def __init__(self) -> None:
        #: the request that has the turn
        self.holder: W | None = None
        #: the requests that wait for it, in the order of asking: a set with an order
        self.waiting: dict[W, None] = {}
        #: passes the turn on when it has lasted for too long; None while no request waits for the turn
        self.timer: asyncio.TimerHandle | None = None
        #: when the current run of a request began, on the event loop's clock: for the holder of the turn, and for
        #: requests that run on without it
        self.run_began_at: dict[W, float] = {}
        #: how long the last runs took, in seconds
        self.run_durations_s: deque[float] = deque(maxlen=RUNS_REMEMBERED)

    @property
    def longest_turn_s(self) -> float:
        """How long a turn may last while others wait, in seconds."""
        return max(PATIENCE_S, RUNS_PER_TURN * min(self.run_durations_s, default=0.0))

    def end_run(self, work: W) -> None:
        """Remember how long the current run of a request took."""
        began_at = self.run_began_at.pop(work, None)
        if began_at is not None:
            self.run_durations_s.append(asyncio.get_running_loop().time() - began_at)

    def stop_timer(self) -> None:
        """Cancel the timer, so that the holder keeps its turn."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Turns(Generic[W]):
    """The queues of one consumer, one for each key with a conflict. It calls `begin` to run a request again.

    `W` is `Work`: a request in progress.
    """

    def __init__(self, begin: Callable[[W], None]) -> None:
        self._begin = begin
        self._queues: dict[str, _Queue[W]] = {}
        #: by request: the key at which it holds the turn, waits for it, or runs on without it
        self._key_of: dict[W, str] = {}
        #: by key: how many conflicts there were; the metrics show the highest of these numbers
        self.conflicts_by_key: Counter[str] = Counter()

    def take(self, work: W, key: str) -> None:
        """Run a request again after a conflict at a key, at once or when it gets the turn."""
        self._count_conflict(key)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        if queue.holder == work:
            self._run(work, queue)
            return
        # The request may still hold the turn at another key. Or its turn here was too long and has passed on.
        self.leave(work)
        self._key_of[work] = key
        queue.waiting[work] = None
        if queue.holder is None:
            self._pass_turn_on(key, queue)
        elif queue.timer is None:  # the first that waits while another request has the turn
            self._start_timer(key, queue)

    def leave(self, work: W) -> bool:
        """Take the turn from a request, or take the request out of the queue.

        Return whether the request was in the queue, so that it does not run.
        """
        # Without a turn, the key is "": no queue has this key.
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
            self._pass_turn_on(key, queue)
        return False

    def _run(self, work: W, queue: _Queue[W]) -> None:
        """Run a request again, and remember how long its run before took, if that was at this key."""
        queue.end_run(work)
        queue.run_began_at[work] = asyncio.get_running_loop().time()
        self._begin(work)

    def _pass_turn_on(self, key: str, queue: _Queue[W]) -> None:
        """Give the turn to the request that has waited longest. If none waits, delete the queue."""
        queue.stop_timer()
        queue.holder = next(iter(queue.waiting), None)
        if queue.holder is None:
            del self._queues[key]
            return
        del queue.waiting[queue.holder]
        self._run(queue.holder, queue)
        self._start_timer(key, queue)

    def _start_timer(self, key: str, queue: _Queue[W]) -> None:
        """If others wait, set a timer that passes the turn on when it has lasted for too long."""
        if queue.waiting:
            queue.timer = asyncio.get_running_loop().call_later(queue.longest_turn_s, self._pass_turn_on, key, queue)

    def _count_conflict(self, key: str) -> None:
        self.conflicts_by_key[key] += 1
        if len(self.conflicts_by_key) > MOST_KEYS:
            # Half of the keys go at once, so that this happens seldom.
            self.conflicts_by_key = Counter(dict(self.conflicts_by_key.most_common(MOST_KEYS // 2)))
