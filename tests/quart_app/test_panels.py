"""Numbers, times and sizes in the words of the live page."""

from __future__ import annotations

import pytest

from quart_app.panels import counted, data_size, duration, shortened


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (61_000, "61 s"), (600_000, "10 min"), (36_000_000, "10 h"),
     (400_000_000, "5 days")],
)  # fmt: skip
def test_spans_of_time_are_short(milliseconds: int, text: str) -> None:
    """Two significant figures are enough to act on."""
    assert duration(milliseconds) == text


def test_numbers_have_their_nouns_and_texts_an_end() -> None:
    """Singular, plural, thousands; a cut is visible."""
    assert [counted(n, "replica") for n in (0, 1, 1204)] == ["0 replicas", "1 replica", "1,204 replicas"]
    assert (shortened("abc", 3), shortened("abcd", 3)) == ("abc", "ab…")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1500, "1.5 kB"), (64 << 20, "67 MB"), (3_200_000, "3.2 MB")],
)
def test_sizes_are_short(count: int, text: str) -> None:
    """Units are of a thousand, as disks and networks count."""
    assert data_size(count) == text
