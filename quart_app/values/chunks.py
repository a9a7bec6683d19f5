"""Divides items into chunks of one class each. A chunk has up to so many small values, or large values up to a size.

The size of a chunk is bounded because a replica works on many chunks at a time, and has the commits of all of them in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from quart_app.values.notation import is_small
from quart_app.values.pace import Pace
from quart_app.values.store import ENTRY_BYTES

#: How many items are put into chunks in one piece of work.
ITEMS = 500


class ItemAsked(Protocol):
    """An item of a client's request: a value, its time to live in seconds, and the class that keeps its record."""

    @property
    def value(self) -> str: ...

    @property
    def ttl(self) -> int: ...

    @property
    def cls(self) -> str: ...


def most_bytes(value: str) -> int:
    """Return about how many bytes the commit of a large value has at most.

    The commit has an entry for each different prime factor, and each entry contains the value. The product of the first
    primes has the most different factors. The shortest of these have one or two digits, most others three or four. So
    the commit of a value of n digits has fewer than 10 + n/2 entries.
    """
    return (len(value) + ENTRY_BYTES) * (10 + len(value) // 2)


class Chunks:
    """Chunks in the order of their first items.

    A chunk of small values has at most `size` values. A chunk of large values has at most `large_bytes`, or one value.
    """

    def __init__(self, size: int, large_bytes: int) -> None:
        #: the chunks, each with its class
        self.all: list[tuple[str, list[dict[str, Any]]]] = []
        self._size = size
        self._large_bytes = large_bytes
        #: by class and whether the values are large: the last chunk, and how many values or bytes it still has room for
        self._last_chunks: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        self._room_left: dict[tuple[str, bool], int] = {}

    async def extend(self, items: Iterable[ItemAsked], pace: Pace) -> None:
        """Put items into chunks, a piece of work at a time."""
        for number, item in enumerate(items):
            if number % ITEMS == ITEMS - 1:
                await pace()
            self.add(item)

    def add(self, item: ItemAsked) -> None:
        """Put an item into a chunk."""
        is_large = not is_small(item.value)
        kind, cost = (item.cls, is_large), most_bytes(item.value) if is_large else 1
        if self._room_left.get(kind, 0) < cost:
            self._last_chunks[kind] = []
            self._room_left[kind] = self._large_bytes if is_large else self._size
            self.all.append((item.cls, self._last_chunks[kind]))
        self._room_left[kind] -= cost
        self._last_chunks[kind].append({"value": item.value, "ttl": item.ttl})
