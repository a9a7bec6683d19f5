"""The window of the free provider over time."""

from __future__ import annotations

import pytest

from quart_app.providers.window import Window


def test_it_accepts_its_limit_and_then_blocks() -> None:
    """The block begins with the last accepted request."""
    window = Window(limit=3, block_s=10)
    assert [window.take(now) for now in (0, 1, 2)] == [None, None, None]
    assert window.take(2.5) == pytest.approx(9.5)
    assert window.take(11.9) == pytest.approx(0.1)


def test_a_refused_request_does_not_make_the_block_longer() -> None:
    """A caller that keeps trying is served as early as one that waits."""
    window = Window(limit=1, block_s=10)
    window.take(0)
    assert [window.take(now) is None for now in (1, 5, 9.99, 10)] == [False, False, False, True]


def test_after_the_block_it_counts_from_zero() -> None:
    """The whole limit is available again."""
    window = Window(limit=2, block_s=10)
    assert [window.take(now) is None for now in (0, 0, 5, 10, 10, 10)] == [True, True, False, True, True, False]


def test_a_count_below_the_limit_never_expires() -> None:
    """Idle time alone gives no request back."""
    window = Window(limit=2, block_s=10)
    window.take(0)
    window.take(1_000)
    assert window.take(1_001) is not None
