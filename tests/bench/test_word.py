"""Ours beside FLINT in one process: every side's quickest pass, on the same numbers."""

from __future__ import annotations

import pytest

from bench import word
from bench.factorise import KINDS


def test_every_side_gets_all_numbers_and_is_timed_by_itself() -> None:
    """A side that does more takes longer, and each side gets each number equally often."""
    seen: tuple[list[int], list[int]] = ([], [])

    def quick(number: int) -> list[int]:
        seen[0].append(number)
        return []

    def slow(number: int) -> list[int]:
        seen[1].append(number)
        return [sum(range(2000))]

    numbers = list(range(2 * word.BLOCK + 1))
    spent = word.seconds([quick, slow], numbers)
    assert 0 < 2 * spent[0] < spent[1]
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(numbers * word.PASSES)


def test_a_line_shows_how_fine_the_comparison_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLINT beside itself has no better and no worse side."""
    times = iter([[1.0, 2.0, 2.0], [3.0, 2.0, 4.0], [2.0, 2.0, 2.0]])
    monkeypatch.setattr(word, "ROUNDS", 3)
    monkeypatch.setattr(word, "seconds", lambda sides, numbers: next(times))
    assert word.compared(KINDS[0]) == [KINDS[0].name, "1.000 (0.500–1.500)", "1.000 (1.000–2.000)"]
