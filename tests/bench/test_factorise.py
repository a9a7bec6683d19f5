"""The bench of factorisation: numbers of the kinds it names, fair limits, and cells that say why they are empty."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from bench import factorise
from bench.factorise import GOAL_WORD, KINDS, OURS, Contender, Kind
from bench.record import Record, Settings
from bench.spread import Spread

WORD = 1 << 64


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_makes_what_its_name_says(kind: Kind) -> None:
    """The goal of numbers in a machine word holds for those, and for no others; sizes are as named."""
    chance = random.Random(kind.name)
    numbers = [kind.make(chance) for _ in range(20)]
    assert all(number < WORD for number in numbers) == (kind.goal == GOAL_WORD)
    if kind.name.startswith("two primes"):
        assert {len(str(number)) for number in numbers} == {int(kind.name.split()[2])}
    if "cofactor" in kind.name:
        small, large = (int(part.split("-")[0]) for part in kind.name.split(", "))
        assert {len(str(number)) for number in numbers} <= {small + large - 1, small + large}


def test_ours_is_asked_for_every_kind_and_so_is_another() -> None:
    """A ratio needs both sides."""
    assert all(OURS in kind.by and len(kind.by) >= 2 for kind in KINDS)


def test_the_ratio_is_to_the_best_of_the_others() -> None:
    """Each round is compared with the peer that was best over all rounds; one that was stopped has no row."""
    rows = {OURS: [3.0, 4.0, 8.0], "flint": [9.0, 9.0, 9.0], "pari": [3.0, 2.0, 8.0]}
    found = factorise.ratio(KINDS[0], rows)
    assert found is not None
    assert found.spread == Spread.of([1.0, 2.0, 1.0])
    assert found.goal == GOAL_WORD
    assert found.met


def test_a_contender_is_asked_for_all_passes_and_its_answers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick wrong answer is no answer."""
    contender = Contender(OURS)
    try:
        seconds = contender.seconds([2**61 - 1, 91], 3, 30)
        assert seconds is not None
        assert len(seconds) == 1
        assert 0 < seconds[0] < 1
        monkeypatch.setattr(factorise.gmpy2, "is_prime", lambda factor: factor != 13)
        with pytest.raises(ArithmeticError, match="for 91"):
            contender.seconds([91], 1, 30)
    finally:
        contender.end()


def test_who_takes_too_long_is_stopped_and_can_be_asked_again() -> None:
    """Its process is gone, and the next question starts another."""
    contender = Contender(OURS)
    try:
        assert contender.seconds([4], 1, 30) is not None
        running = contender.process
        assert running is not None
        assert contender.seconds([factorise.semiprime(80)(random.Random(1))], 1, 0.1) is None
        assert running.poll() is not None
        assert contender.seconds([4], 1, 30) is not None
    finally:
        contender.end()


class _Scripted:
    """A contender whose turns take what is written down; None where it is stopped."""

    def __init__(self, name: str, turns: list[list[float] | None]) -> None:
        self.name = name
        self.given_up: set[str] = set()
        self._turns = iter(turns)
        self.asked: list[list[int]] = []

    def seconds(self, numbers: list[int], passes: int, limit_s: float) -> list[float] | None:
        assert (passes, limit_s > 0) == (7, True)
        self.asked.append(numbers)
        return next(self._turns)


def test_of_every_block_the_quickest_turn_counts() -> None:
    """Turns of one round have the same numbers, rounds have others; whoever was stopped once has no row."""
    kind = Kind("some", 2, lambda chance: chance.randrange(10**9), passes=7, turns=3)
    turns = [[0.004, 0.001], [0.001, 0.002], [0.003, 0.002], [0.008, 0.001], [0.009, 0.001], [0.005, 0.002]]
    steady = _Scripted("steady", turns)
    slow = _Scripted("slow", [[0.004, 0.004], None])
    rows = factorise.of_kind(kind, [steady, slow], 2)  # type: ignore[list-item]
    assert rows == {"steady": [1.0, 3.0]}
    first, second = steady.asked[:3], steady.asked[3:]
    assert first == [first[0]] * 3
    assert second == [second[0]] * 3
    assert first[0] != second[0]
    assert len(slow.asked) == 2


def test_an_empty_cell_says_why() -> None:
    """A cell tells a case that was not asked from one that took too long."""
    kind = next(kind for kind in KINDS if "sympy" not in kind.by)
    measured = {f"{kind.name} | {OURS}": Spread.of([0.5])}
    found = Record("factorise", Settings(), measured, {}, {"versions": dict.fromkeys(factorise.PEER_NAMES, "1")})
    line = next(line for line in factorise.present(found, Path()).splitlines() if line.startswith(f"| {kind.name}"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells == ["0.500", "too slow", "too slow", "not asked", "not asked", "", "≤ 1.2", "yes"]


def test_a_ratio_needs_ours_and_another() -> None:
    """A side that was stopped has no ratio; the run goes on without it, and the goal is then not reached."""
    assert factorise.ratio(KINDS[0], {OURS: [1.0]}) is None
    assert factorise.ratio(KINDS[0], {"flint": [1.0]}) is None
    measured = {f"{KINDS[0].name} | flint": Spread.of([0.5])}
    found = Record("factorise", Settings(), measured, {}, {"versions": dict.fromkeys(factorise.PEER_NAMES, "1")})
    assert factorise.row(found, KINDS[0])[-1] == "not yet"


def test_digits_say_as_much_as_the_figure() -> None:
    """Three of them, wherever the point is."""
    assert [factorise.digits(10.0**power) for power in (-3, -1, 0, 2, 4)] == [6, 4, 3, 1, 0]
    assert math.isclose(float(f"{0.00152:.{factorise.digits(0.00152)}f}"), 0.00152)
