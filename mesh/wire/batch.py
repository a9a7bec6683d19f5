"""What waits for the next round trips of a link: commands, requests and transactions, each with its waiter.

Each kind has a `SendQueue`. The link takes one batch at a time from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from mesh.errors import Busy
from mesh.wire.connection import WEIGHT_SHIFT

T = TypeVar("T")

#: The most items of one kind that may wait for a round trip. The sender of one more gets Busy. The bound limits the
#: memory that waiting items take while Redis does not answer.
MOST_WAITING = 20_000


class Waiter(Protocol):
    """Receives the result of one item, or its error: a Future, or an object like one.

    The link asks `done` first. If it returns True, as that of a cancelled Future does, the waiter receives nothing.
    """

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, error: BaseException, /) -> None: ...


#: Items (a command, some requests, or a transaction), each with its waiter and its weight: for how many words it counts
#: in a round trip.
Items = list[tuple[T, Waiter, int]]


def fail(items: Iterable[tuple[Any, Waiter, int]], error: BaseException) -> None:
    """Give an error to the waiters of some items, except to those that are done."""
    for _, waiter, _ in items:
        if not waiter.done():
            waiter.set_exception(error)


def weight_of(words: Sequence[Any]) -> int:
    """Return the weight of a command: for how many words it counts in a round trip.

    A long word counts for several words (see WEIGHT_SHIFT).
    """
    return len(words) + (sum([len(word) for word in words if word.__class__ is str]) >> WEIGHT_SHIFT)


class SendQueue(Generic[T]):
    """At most `bound` items of one kind that wait for a round trip, each with its waiter and its weight in words."""

    def __init__(self, bound: int = MOST_WAITING) -> None:
        self._bound = bound
        #: see `Items`
        self.items: deque[tuple[T, Waiter, int]] = deque()
        #: the weight of all items together
        self._weight = 0

    def add(self, item: T, waiter: Waiter, weight: int) -> None:
        """Append an item with its weight. Raises Busy when as many items wait as may wait."""
        if len(self.items) >= self._bound:
            raise Busy(f"{self._bound} commands already wait to be sent to Redis; retry after 1 s", retry_after=1)
        self.items.append((item, waiter, weight))
        self._weight += weight

    def take(self, most_words: int) -> Items[T]:
        """Remove and return the oldest items: together at most `most_words`, but at least one item.

        So an item that alone has more words is sent, too, and does not hold up the queue forever.
        """
        items = self.items
        if self._weight <= most_words:
            taken = [*items]
            items.clear()
            self._weight = 0
            return taken
        taken, words_left = [], most_words  # the third value of an item is its weight in words
        while items and (items[0][2] <= words_left or not taken):
            taken.append(items.popleft())
            words_left -= taken[-1][2]
        self._weight -= most_words - words_left
        return taken

    def put_first(self, items: Items[T]) -> None:
        """Insert items before all others, even beyond the bound."""
        self.items.extendleft(reversed(items))
        self._weight += sum(weight for _, _, weight in items)

    def fail(self, error: BaseException) -> None:
        """Remove all items, and give an error to their waiters."""
        fail(self.take(self._weight), error)
