"""Divides items into chunks of one class each: so many small values, or large values up to so many digits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from quart_app.values.notation import is_small
from quart_app.values.pace import Pace

#: Items that are divided in one piece of work.
ITEMS = 500


class ItemAsked(Protocol):
    """What a client asks for: a value, its time to live in seconds, and the class that is to keep it."""

    @property
    def value(self) -> str: ...

    @property
    def ttl(self) -> int: ...

    @property
    def cls(self) -> str: ...


class Chunks:
    """Chunks in the order of their first items. A chunk of large values begins anew after `large_digits` digits."""

    def __init__(self, size: int, large_digits: int) -> None:
        self.all: list[tuple[str, list[dict[str, Any]]]] = []
        self._size = size
        self._large_digits = large_digits
        #: by class, and whether for large values: the last chunk, and how much of it is left
        self._last: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        self._left: dict[tuple[str, bool], int] = {}

    async def extend(self, items: Iterable[ItemAsked], pace: Pace) -> None:
        """Put items into chunks, a piece of work at a time."""
        for number, item in enumerate(items):
            if number % ITEMS == ITEMS - 1:
                await pace()
            self.add(item)

    def add(self, item: ItemAsked) -> None:
        """Put an item into a chunk."""
        is_large = not is_small(item.value)
        kind, cost = (item.cls, is_large), len(item.value) if is_large else 1
        if self._left.get(kind, 0) < cost:
            self._last[kind] = []
            self._left[kind] = self._large_digits if is_large else self._size
            self.all.append((item.cls, self._last[kind]))
        self._left[kind] -= cost
        self._last[kind].append({"value": item.value, "ttl": item.ttl})
