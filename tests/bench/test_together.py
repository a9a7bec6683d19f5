"""Curves in several processes: what a slice leaves behind, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import gmpy2
import pytest

from bench import slices, together
from bench.slices import Done
from bench.together import Found
from quart_app.values.curves import b1_bound
from quart_app.values.factorise import Composite, Factoring


def test_a_slice_writes_down_its_time_and_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of a slice is the sum of the bounds of its curves."""
    path = tmp_path / "slices"
    monkeypatch.setenv(slices.FILE, str(path))
    number = together.number()
    factoring, factors = slices.advance(Factoring(number, (), (Composite(number, 1, 5),)), 60, 315)
    assert factors is None
    (done,) = slices.read(path)
    last = factoring.composites[0].curves
    assert done.work == sum(map(b1_bound, range(6, last + 1)))
    assert 0 < done.cpu_s < 1.1 * (done.ended_s - done.begun_s)


def test_two_processes_with_half_a_core_each_count_as_two() -> None:
    """The figures do not depend on what other programs do meanwhile."""
    found = Found.of([Done(0, 10, 5, 100), Done(0, 9, 5, 100)], 10)
    assert found.processes == pytest.approx(1.9)
    assert found.speed == pytest.approx(20)


def test_the_number_has_no_factor_to_find() -> None:
    """A factor that is found would end the measurement."""
    number = together.number()
    assert len(str(number)) == together.DIGITS
    assert not gmpy2.is_prime(number)
