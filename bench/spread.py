"""A summary of repeated measurements: the median and the range of the rounds."""

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
        """Return the summary of some rounds. Raises ValueError without a round."""
        if not values:
            raise ValueError("no round was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Spread:
        """Return the summary that `stored` wrote as JSON."""
        return cls(**stored)

    def stored(self) -> dict[str, Any]:
        """Return the summary as JSON."""
        return asdict(self)

    def text(self, digits: int = 0, unit: str = "") -> str:
        """Return the median and the range for a table."""
        if self.rounds == 1:
            return f"{self.median:,.{digits}f}{unit}"
        return f"{self.median:,.{digits}f}{unit} ({self.lowest:,.{digits}f}–{self.highest:,.{digits}f})"


def worsened(recorded: Spread, now: Spread, *, more_is_better: bool) -> bool:
    """Return whether `now` is worse than `recorded` beyond the spread of both.

    That is: neither median lies within the other's range, and the new one is on the wrong side.
    """
    if more_is_better:
        return now.median < recorded.lowest and recorded.median > now.highest
    return now.median > recorded.highest and recorded.median < now.lowest


def interleaved(contenders: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Yield every contender once a round; each round begins with another, so that no position helps."""
    for number in range(rounds):
        shift = number % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            yield number, contender


def per_round(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of each round, because what disturbed a round disturbed both sides."""
    return [a / b for a, b in zip(above, below, strict=True)]


def best_of(rows: Sequence[Sequence[float]], choose: Callable[[Iterable[float]], float]) -> list[float]:
    """Return the best of several contenders in each round; `choose` is max or min."""
    return [choose(values) for values in zip(*rows, strict=True)]
