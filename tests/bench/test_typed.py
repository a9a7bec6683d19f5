"""What typed operations cost: both kinds of call in one process, in turn."""

from __future__ import annotations

import pytest

from bench import typed
from bench.record import Settings
from bench.servers import valkey
from bench.typed import WAYS, alternate, interval, measure, present, quickest, spend


async def test_each_way_is_measured_in_its_rounds() -> None:
    """Both kinds of call work, and the server's share is known."""
    with valkey() as server:
        found = await alternate(server, ["typed", "named", "again", "typed"], calls=130)
    assert {way: len(values) for way, values in found.items()} == {"named": 1, "typed": 2, "again": 1, "server": 1}
    assert all(min(found[way]) > 0 for way in WAYS)


async def test_an_answer_that_is_not_the_callers_ends_the_measurement() -> None:
    """A quick wrong answer is no result."""

    async def wrong(number: int) -> int:
        return number + 1

    with pytest.raises(ValueError, match="another answer"):
        await spend(wrong, 10, 2)


def test_the_median_is_known_as_well_as_its_neighbours() -> None:
    """Of a hundred values it lies between the 40th and the 60th; what disturbs some rounds does not move it far."""
    assert interval([*range(100)]) == (40, 60)
    assert interval([*range(90), *[10_000] * 10]) == (40, 60)
    assert quickest([*range(100)]) == 4.5 and quickest([3.0]) == 3.0


def test_the_section_has_the_ratio_and_how_fine_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """The section says how precise its ratio is, because the machine is shared."""
    monkeypatch.setattr(typed, "ROUNDS", 2)
    monkeypatch.setattr(typed, "CALLS", 130)
    text = present(measure(Settings(rounds=1)), tmp_path)  # type: ignore[arg-type]
    assert "typed / named operations | " in text and "≤ 1.03" in text and "lie within (95 %)" in text
