"""One key that everybody changes, with turns and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import hot_key
from bench.hot_key import CASES, contend, measure, no_turns, present
from bench.record import Settings
from mesh.requests.turns import Turns


async def test_with_turns_all_are_answered_in_few_runs() -> None:
    """This holds for a replica's own key, and for one that two replicas share."""
    for replicas in (1, 2):
        found = await contend(40, replicas)
        assert found.answered == 40 and found.runs <= 160 and found.seconds > 0


async def test_without_turns_each_runs_again_at_once() -> None:
    """The measurement without turns is the one to compare with; afterwards there are turns again."""
    before = Turns.take
    with no_turns():
        found = await contend(40, 1)
    assert found.runs > 160 and Turns.take is before


def test_the_section_names_each_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A way that was not measured leaves its cells empty."""
    monkeypatch.setattr(hot_key, "one", lambda requests, replicas, way: hot_key.Found(0.5, 2 * requests, requests))
    record = measure(Settings(rounds=2, only=("turns",)))
    text = present(record, tmp_path)
    assert text.count("one replica |") == 3 and "400, a shared key, 4 replicas | 0.50" in text
    assert len(record.ratios) == len(CASES) and all(ratio.met for ratio in record.ratios.values())
