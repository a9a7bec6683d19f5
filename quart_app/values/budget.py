"""A bound for what all work in progress takes at once, such as bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mesh import Busy


class Budget:
    """A bound for work in progress. Each piece of work takes an amount while it lasts, and the sum is at most `bound`.

    `unit` is what the amounts count, for the text of the error, such as "bytes of answers".

    While nothing is taken, any amount is granted, even an amount above the bound. Otherwise a large request could never
    run. Other code bounds the size of each request.
    """

    def __init__(self, bound: int, unit: str, retry_after_s: int) -> None:
        #: the sum of the amounts that all work in progress takes now
        self.taken = 0
        self._bound = bound
        self._unit = unit
        self._retry_after_s = retry_after_s

    def take(self, amount: int) -> None:
        """Take this amount until it is given back. Raises Busy if there is too little left."""
        # A request that takes nothing is never refused, even after a granted amount above the bound.
        if self.taken and amount and self.taken + amount > self._bound:
            detail = f"this replica has {self._bound} {self._unit} in progress; retry after {self._retry_after_s} s"
            raise Busy(detail, retry_after=self._retry_after_s)
        self.taken += amount

    def give(self, amount: int) -> None:
        """Give back an amount that was taken."""
        self.taken -= amount

    @contextlib.contextmanager
    def lent(self, amount: int) -> Iterator[None]:
        """Take this amount for the time of the block. Raises Busy."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)
