"""How much of something this replica takes on at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mesh import Busy


class Budget:
    """An amount that work takes while it lasts; `what` says what it is an amount of.

    While nothing is taken, any amount is granted, even one above the bound. Otherwise a large request could never run;
    other code bounds the size of each request.
    """

    def __init__(self, most: int, what: str, retry_after_s: int) -> None:
        self.taken = 0
        self._most = most
        self._what = what
        self._retry_after_s = retry_after_s

    def take(self, amount: int) -> None:
        """Take this amount until it is given back. Raises Busy if there is too little left."""
        if self.taken and amount and self.taken + amount > self._most:
            detail = f"this replica has {self._most} {self._what} in progress; retry after {self._retry_after_s} s"
            raise Busy(detail, retry_after=self._retry_after_s)
        self.taken += amount

    def give(self, amount: int) -> None:
        """Give back an amount that was taken."""
        self.taken -= amount

    @contextlib.contextmanager
    def lent(self, amount: int) -> Iterator[None]:
        """Take this amount while the block lasts. Raises Busy."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)
