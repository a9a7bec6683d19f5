"""A budget: what it refuses, and that it gets everything back."""

from __future__ import annotations

import pytest

from mesh import Busy
from quart_app.values.budget import Budget


def test_beyond_the_budget_is_busy_and_says_when_to_retry() -> None:
    """The refusal takes nothing."""
    budget = Budget(10, "pieces", 3)
    budget.take(7)
    with pytest.raises(Busy, match="10 pieces in progress; retry after 3 s") as raised:
        budget.take(4)
    assert raised.value.retry_after == 3
    budget.take(3)
    assert budget.taken == 10


def test_what_comes_alone_gets_through_however_much_it_is() -> None:
    """A request larger than the budget is let through when it is alone."""
    budget = Budget(10, "pieces", 3)
    with budget.lent(50):
        with pytest.raises(Busy):
            budget.take(1)
        budget.take(0)
    assert budget.taken == 0


def test_a_failure_gives_the_budget_back() -> None:
    """A failure gives the budget back, as any other end does."""
    budget = Budget(10, "pieces", 3)
    with pytest.raises(KeyError), budget.lent(5):
        raise KeyError
    assert budget.taken == 0
