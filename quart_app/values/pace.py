"""Sharing the event loop: long work is cut into pieces, and only so many of them run in one turn of the loop.

A turn is one pass of the loop over what is ready. Each piece begins with `await pace()`, which costs nothing while the
turn is young. Once the turn has lasted `most_s`, the pieces wait for later turns, the oldest first. So the loop is held
for about `most_s` and one piece, however many requests come together.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time

#: A turn may last this long before further pieces wait. The promise is 20 ms; other code runs in the same turn.
MOST_S = 0.004
#: Pieces that may begin in a later turn are woken in groups of this many: waking all of a long queue costs a turn too.
WOKEN = 32


class Pace:
    """The pieces of work of one event loop."""

    def __init__(self, most_s: float = MOST_S) -> None:
        self._most_s = most_s
        #: when this turn is full; 0 while no piece has run in it
        self._full_s = 0.0
        #: by the number of its place; who was woken too late for a turn takes the same place again
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._places = itertools.count()
        self._is_ending = False

    async def __call__(self) -> None:
        """Wait until a piece of work may run."""
        if not self._waiting and self._fits():
            return
        place = next(self._places)
        while True:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (place, waiter))
            self._end_soon()
            await waiter
            if self._fits():
                return

    def _fits(self) -> bool:
        now_s = time.monotonic()
        if not self._full_s:
            self._full_s = now_s + self._most_s
            self._end_soon()
            return True
        return now_s < self._full_s

    def _end_soon(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        """Begin the next turn: this callback runs in it."""
        self._full_s = 0.0
        self._is_ending = False
        woken = 0
        while self._waiting and woken < WOKEN:
            _, waiter = heapq.heappop(self._waiting)
            if not waiter.done():
                waiter.set_result(None)
                woken += 1
