"""Repeated measurements in small: a median and how far the rounds lay apart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    median: float
    lowest: float
    highest: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there was no round."""
        if not values:
            raise ValueError("no round was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Spread:
        """What `stored` kept in JSON."""
        return cls(**stored)

    def stored(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def text(self, digits: int = 0, unit: str = "") -> str:
        """For a table: the median and the range."""
        if self.rounds == 1:
            return f"{self.median:,.{digits}f}{unit}"
        return f"{self.median:,.{digits}f}{unit} ({self.lowest:,.{digits}f}–{self.highest:,.{digits}f})"


def worsened(recorded: Spread, now: Spread, *, more_is_better: bool) -> bool:
    """Whether `now` is worse than `recorded` beyond what the rounds of both lie apart anyway.

    That is: neither median lies within the other's range, and it is on the wrong side.
    """
    if more_is_better:
        return now.median < recorded.lowest and recorded.median > now.highest
    return now.median > recorded.highest and recorded.median < now.lowest


def interleaved(contenders: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every contender once a round; each round begins with another, so that no place is a privilege."""
    for number in range(rounds):
        shift = number % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            yield number, contender


def per_round(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio in each round: what disturbed a round disturbed both sides of it."""
    return [a / b for a, b in zip(above, below, strict=True)]


def best_of(rows: Sequence[Sequence[float]], choose: Callable[[Iterable[float]], float]) -> list[float]:
    """The best of several contenders in each round; `choose` is max or min."""
    return [choose(values) for values in zip(*rows, strict=True)]
