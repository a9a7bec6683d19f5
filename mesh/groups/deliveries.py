"""When an entry is given up, by the number of its deliveries. The rules are the same for requests and events.

Each delivery counts, except one that was handed back. An entry that kills each process that works on it is delivered
again and again. So it is given up after a number of deliveries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple


class Pending(NamedTuple):
    """An entry that was delivered and is not acknowledged yet."""

    id: str
    deliveries: int


def is_last(deliveries: int, most_deliveries: int) -> bool:
    """Return whether this delivery is the last one: if it fails, the entry is given up.

    `deliveries` is their number, this one included. Consumers ask this after the work on the entry.
    """
    return deliveries >= most_deliveries


def is_overdelivered(deliveries: int, most_deliveries: int) -> bool:
    """Return whether an entry must not be tried once more: all allowed deliveries ended without an outcome.

    Consumers ask this before the work on the entry.
    """
    return deliveries > most_deliveries


def next_to_claim(pending: Sequence[Pending], most_entries: int) -> list[Pending]:
    """Return the entries to claim next: the oldest, and those right after it with the same number of deliveries.

    They are at most `most_entries`.
    """
    same_deliveries = takewhile(lambda entry: entry.deliveries == pending[0].deliveries, pending)
    return list(same_deliveries)[:most_entries]
