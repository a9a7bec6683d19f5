"""The free provider's memory, walked through time."""

from __future__ import annotations

import pytest

from quart_app.providers.window import Window


def test_it_takes_as_many_as_its_limit_and_then_blocks() -> None:
    """The block counts from the last request taken."""
    window = Window(limit=3, block_s=10)
    assert [window.take(now) for now in (0, 1, 2)] == [None, None, None]
    assert window.take(2.5) == pytest.approx(9.5)
    assert window.take(11.9) == pytest.approx(0.1)


def test_a_refused_request_does_not_make_the_block_longer() -> None:
    """Whoever keeps asking is served at the same moment as who waits."""
    window = Window(limit=1, block_s=10)
    window.take(0)
    assert [window.take(now) is None for now in (1, 5, 9.99, 10)] == [False, False, False, True]


def test_after_the_block_it_counts_from_none() -> None:
    """A whole new window."""
    window = Window(limit=2, block_s=10)
    assert [window.take(now) is None for now in (0, 0, 5, 10, 10, 10)] == [True, True, False, True, True, False]


def test_a_count_that_is_not_full_is_never_forgotten() -> None:
    """The strictest reading: idle time alone gives nothing back."""
    window = Window(limit=2, block_s=10)
    window.take(0)
    window.take(1_000)
    assert window.take(1_001) is not None
