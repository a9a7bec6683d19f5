"""Figures in small, and what counts as worse."""

from __future__ import annotations

import pytest

from bench.spread import Spread, best_of, interleaved, per_round, worsened


def spread(*values: float) -> Spread:
    return Spread.of(values)


def test_a_spread_keeps_median_and_range() -> None:
    """Median, lowest and highest: one wild round moves the range, not the median."""
    assert spread(3, 1, 100) == Spread(3, 1, 100, 3)


def test_no_round_is_no_measurement() -> None:
    """Nothing measured is an error, never a zero."""
    with pytest.raises(ValueError, match="no round"):
        Spread.of([])


@pytest.mark.parametrize(
    ("now", "is_worse"),
    [
        ((9, 10, 11), False),  # the same
        ((7, 8, 10.5), False),  # lower, but the recorded median was reached
        ((7, 8, 9.5), True),  # neither median in the range of the other
        ((5, 6, 7), True),  # lower throughout
        ((20, 21, 22), False),  # better
        ((5, 6, 12), False),  # one round reached it: noise
    ],
)
def test_worse_means_beyond_both_spreads(now: tuple[float, ...], is_worse: bool) -> None:
    """A regression is told only where neither median lies in the other's range."""
    assert worsened(spread(9, 10, 11), spread(*now), more_is_better=True) is is_worse


def test_less_may_be_better() -> None:
    """A latency is worse when it is higher."""
    assert worsened(spread(9, 10, 11), spread(14, 15, 16), more_is_better=False)
    assert not worsened(spread(9, 10, 11), spread(4, 5, 6), more_is_better=False)


def test_rounds_are_interleaved_and_begin_with_another_each() -> None:
    """Each contender runs once a round, and none is always first."""
    order = list(interleaved("abc", 3))
    assert order == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a"), (2, "c"), (2, "a"), (2, "b")]


def test_ratios_pair_the_same_round() -> None:
    """A slow round is slow for both sides; the ratio of medians would mix rounds."""
    assert per_round([10, 5, 10], [2, 1, 2]) == [5, 5, 5]
    with pytest.raises(ValueError):
        per_round([1, 2], [1])


def test_the_best_is_chosen_in_each_round() -> None:
    """The opponent is whoever was best then, not one contender chosen afterwards."""
    assert best_of([[1, 9], [5, 5]], max) == [5, 9]
