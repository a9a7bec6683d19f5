"""Divides items into chunks of one class each. A chunk has small values up to a number, or large ones up to a size.

The size of a chunk is bounded because a replica works on many chunks at a time, and has the commits of all of them in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from quart_app.values.notation import is_small
from quart_app.values.pace import Pace
from quart_app.values.store import ENTRY_BYTES

#: How many items are put into chunks between two calls of `pace`, which lets the event loop do other work. More would
#: hold it longer; fewer would cost more calls.
ITEMS_BETWEEN_PACES = 500


class ItemAsked(Protocol):
    """An item of a client's request: a value, its time to live in seconds, and the class that keeps its record."""

    @property
    def value(self) -> str: ...

    @property
    def ttl(self) -> int: ...

    @property
    def cls(self) -> str: ...


def most_commit_bytes(value: str) -> int:
    """Return about how many bytes the commit of a large value has at most.

    The commit has an entry for each different prime factor, and each entry contains the value. A product of the first
    primes has the most different factors for its length. Only a few of these primes are short. So a value of n digits
    has fewer than 10 + n/2 different factors.
    """
    return (len(value) + ENTRY_BYTES) * (10 + len(value) // 2)


class Chunks:
    """Chunks in the order of their first items.

    A chunk of small values has at most `max_values` values. A chunk of large values has at most `max_large_bytes`, or
    one value.
    """

    def __init__(self, max_values: int, max_large_bytes: int) -> None:
        #: the chunks, each with its class
        self.all: list[tuple[str, list[dict[str, Any]]]] = []
        self._max_values = max_values
        self._max_large_bytes = max_large_bytes
        #: by class and whether the values are large: the latest chunk, which may have room
        self._latest_chunks: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        #: by the same key: for how many more small values, or bytes of large values, the latest chunk has room
        self._room_left: dict[tuple[str, bool], int] = {}

    async def extend(self, items: Iterable[ItemAsked], pace: Pace) -> None:
        """Put items into chunks. Wait for `pace` between them, so that other work is not held up."""
        for index, item in enumerate(items):
            if index % ITEMS_BETWEEN_PACES == ITEMS_BETWEEN_PACES - 1:
                await pace()
            self.add(item)

    def add(self, item: ItemAsked) -> None:
        """Put an item into a chunk."""
        is_large = not is_small(item.value)
        class_and_size, cost = (item.cls, is_large), most_commit_bytes(item.value) if is_large else 1
        if self._room_left.get(class_and_size, 0) < cost:
            self._latest_chunks[class_and_size] = []
            self._room_left[class_and_size] = self._max_large_bytes if is_large else self._max_values
            self.all.append((item.cls, self._latest_chunks[class_and_size]))
        self._room_left[class_and_size] -= cost
        self._latest_chunks[class_and_size].append({"value": item.value, "ttl": item.ttl})
