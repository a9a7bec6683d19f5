"""The last hour, from the books of each minute."""

from __future__ import annotations

from quart_app.dashboard.minutes import answered_per_minute


def kept(*counts: tuple[int, int]) -> list[tuple[str, dict[str, str]]]:
    """Return entries of mesh:minutes: minute and number answered so far."""
    return [(f"{minute * 60_000}-0", {"answered": str(count)}) for minute, count in counts]


def test_each_minute_has_its_answers() -> None:
    """The difference between two entries; one entry alone says nothing."""
    assert answered_per_minute(kept((1, 100), (2, 160), (3, 160))) == [60, 0]
    assert answered_per_minute(kept((1, 100))) == answered_per_minute([]) == []


def test_minutes_without_a_replica_share_what_came_in_between() -> None:
    """No gap is drawn as if time had stood still, and a long one fills the hour once."""
    assert answered_per_minute(kept((1, 0), (4, 30), (5, 90))) == [10, 10, 10, 60]
    assert answered_per_minute(kept((1, 0), (1_000_001, 1_000_000))) == [1] * 60


def test_a_server_that_was_emptied_counts_anew() -> None:
    """A rate is never below zero."""
    assert answered_per_minute(kept((1, 500), (2, 3))) == [0]


def test_an_hour_is_enough() -> None:
    """The oldest minutes are left out."""
    assert answered_per_minute(kept(*((n, n * n) for n in range(100)))) == [2 * n + 1 for n in range(39, 99)]
