"""What is kept of a run, and how a later run is held against it."""

from __future__ import annotations

from pathlib import Path

from bench.record import Ratio, Record, Settings, load, regressions, save
from bench.spread import Spread


def record(*ratio: float, more_is_better: bool = True) -> Record:
    measured = {"mesh|128|rate": Spread.of([1.0, 2.0])}
    ratios = {"ours / theirs": Ratio.of(ratio, goal=2.0, more_is_better=more_is_better)}
    return Record("request_reply", Settings(levels=(1, 2)), measured, ratios, {"note": [1, 2]})


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    """JSON loses nothing."""
    path = tmp_path / "recorded.json"
    save({"request_reply": record(1, 2, 3)}, path)
    assert load(path) == {"request_reply": record(1, 2, 3)}


def test_nothing_recorded_is_empty(tmp_path: Path) -> None:
    """The first run has nothing to be compared with."""
    assert load(tmp_path / "recorded.json") == {}


def test_only_a_ratio_beyond_the_spread_is_a_regression() -> None:
    """Absolute figures are not compared at all."""
    slower_machine = Record("request_reply", Settings(), {"mesh|128|rate": Spread.of([0.1])}, record(9, 10, 11).ratios)
    assert regressions(record(9, 10, 11), slower_machine) == []
    (sentence,) = regressions(record(9, 10, 11), record(4, 5, 6))
    assert "ours / theirs" in sentence


def test_a_latency_that_fell_is_no_regression() -> None:
    """The direction belongs to the ratio."""
    before = record(9, 10, 11, more_is_better=False)
    assert regressions(before, record(1, 2, 3, more_is_better=False)) == []
    assert regressions(before, record(14, 15, 16, more_is_better=False))


def test_a_goal_is_held_against_the_median() -> None:
    """Reached or not yet; the table says so."""
    assert record(1, 2, 3).ratios["ours / theirs"].met
    assert not record(1, 1.9, 3).ratios["ours / theirs"].met
    assert "not yet" in record(1, 1.9, 3).ratio_table()
