"""The estimate: it grows with the size, and stays near what was measured."""

from __future__ import annotations

import itertools
import math

from quart_app.values import curves, estimate
from quart_app.values import factorise as engine
from quart_app.values.factorise import Composite, Factoring


def test_a_larger_number_takes_longer() -> None:
    """The estimate grows also between and beyond the measured sizes."""
    times = [estimate.sieve_seconds(bits) for bits in range(40, 400, 3)]
    assert all(a < b for a, b in itertools.pairwise(times))
    costs = [estimate.curve_seconds(bits, 10) for bits in range(40, 2000, 50)]
    assert all(a < b for a, b in itertools.pairwise(costs))


def test_measured_sizes_give_measured_times() -> None:
    """The interpolation goes through its points."""
    for bits, seconds in estimate.SIEVE_TIMES:
        assert math.isclose(estimate.sieve_seconds(bits), seconds)


def test_the_curves_before_a_sieve_cost_their_share() -> None:
    """The curves take about an eighth of the sieve's time, whatever the size."""
    for bits in (150, 200, 266):
        spent = sum(estimate.curve_seconds(bits, index + 1) for index in range(estimate.curve_count_before_sieve(bits)))
        share = spent / estimate.sieve_seconds(bits)
        assert 0.5 * estimate.CURVES_SHARE < share < 1.3 * estimate.CURVES_SHARE


def test_what_is_left_counts_not_what_was_given() -> None:
    """A large number with a small composite is cheap; a composite past the limit has no end."""
    small, hopeless = Composite(2**100 - 15), Composite(2**400 - 15)
    assert engine.expected_seconds(Factoring(2**1000, (), (small,))) < 0.01
    assert math.isinf(engine.expected_seconds(Factoring(2**1000, (), (small, hopeless))))
    assert engine.expected_seconds(Factoring(6, ((2, 1), (3, 1)))) == 0


def test_bounds_of_curves_grow() -> None:
    """Each curve reaches a little further than the one before."""
    bounds = [curves.b1_bound(index) for index in range(1, 100)]
    assert bounds[0] >= 50
    assert all(a <= b for a, b in itertools.pairwise(bounds))
