"""Sharing the event loop: long work is cut into pieces, and only some of them run in one turn of the loop.

Each piece begins with `await pace()`. In the first `most_s` seconds of a turn, this returns at once. After that, pieces
wait for a later turn; the oldest runs first. So the pieces block the loop for about `most_s` and the time of one piece,
however many requests come together.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time

#: When a turn has lasted this long, further pieces wait. No input may block the loop for more than 20 ms, and the last
#: piece and other code run in the same turn. With less, long work takes more turns.
MOST_TURN_S = 0.004
#: The most waiting pieces that are woken in one turn. Waking a long queue at once would itself take too long. With
#: fewer, short pieces would leave most of the turn unused.
MOST_WOKEN_PIECES = 32


class Pace:
    """The pieces of work of one event loop."""

    def __init__(self, most_s: float = MOST_TURN_S) -> None:
        self._most_s = most_s
        #: when this turn is full (s); 0 while no piece has run in the turn
        self._full_at_s = 0.0
        #: a heap of the waiting pieces, by the order in which they came
        self._waiting_pieces: list[tuple[int, asyncio.Future[None]]] = []
        self._next_orders = itertools.count()
        self._is_turn_scheduled = False

    async def __call__(self) -> None:
        """Wait until a piece of work may run."""
        if not self._waiting_pieces and self._fits():
            return
        order = next(self._next_orders)
        while True:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # A piece that is woken in a full turn waits again, with the same order.
            heapq.heappush(self._waiting_pieces, (order, waiter))
            self._schedule_next_turn()
            await waiter
            if self._fits():
                return

    def _fits(self) -> bool:
        """Return whether a piece may run in this turn. The first piece of a turn sets when the turn is full."""
        now_s = time.monotonic()
        if not self._full_at_s:
            self._full_at_s = now_s + self._most_s
            self._schedule_next_turn()
            return True
        return now_s < self._full_at_s

    def _schedule_next_turn(self) -> None:
        """Have the event loop call `_begin_turn` in its next turn."""
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        """Begin the next turn: this callback runs in it."""
        self._full_at_s = 0.0
        self._is_turn_scheduled = False
        woken_count = 0
        while self._waiting_pieces and woken_count < MOST_WOKEN_PIECES:
            _, waiter = heapq.heappop(self._waiting_pieces)
            if not waiter.done():
                waiter.set_result(None)
                woken_count += 1
        # All woken pieces may be cancelled before they run. Then none of them schedules a turn for the other pieces.
        if self._waiting_pieces:
            self._schedule_next_turn()
