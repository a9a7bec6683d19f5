"""What the number of its deliveries means for an entry: pure rules, the same for requests and events.

Each delivery counts, except one that was handed back. An entry that ends its process is delivered again and again, so
after the last allowed delivery it is given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple


class Pending(NamedTuple):
    """An entry that was delivered and is not acknowledged yet."""

    id: str
    deliveries: int


def is_last(deliveries: int, most: int) -> bool:
    """Return whether an entry that fails in this delivery is given up."""
    return deliveries >= most


def is_overdelivered(deliveries: int, most: int) -> bool:
    """Return whether an entry was delivered too often to be tried once more: it has ended its processes."""
    return deliveries > most


def next_group(pending: Sequence[Pending], most: int) -> list[Pending]:
    """Return the entries to claim next: the oldest one, and its successors with as many deliveries."""
    alike = takewhile(lambda one: one.deliveries == pending[0].deliveries, pending)
    return list(alike)[:most]
