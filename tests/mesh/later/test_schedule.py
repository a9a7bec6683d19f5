"""When ticks are, and what becomes of those that were missed."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from mesh.errors import UsageError
from mesh.later.schedule import LATE_MS, MOST_COUNTED, MissedPolicy, Plan, Schedule

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_MS, MINUTE_MS = 3_600_000, 60_000


def ms(year: int, month: int, day: int, hour: int = 0, minute: int = 0, *, fold: int = 0) -> int:
    """Return a moment in Berlin as ms of Unix time."""
    return int(datetime(year, month, day, hour, minute, tzinfo=BERLIN, fold=fold).timestamp() * 1000)


def test_the_first_tick_after_a_moment() -> None:
    daily = Schedule("0 4 * * *", tz="Europe/Berlin")
    assert daily.first_after(ms(2026, 11, 29, 3, 59)) == ms(2026, 11, 29, 4)
    assert daily.first_after(ms(2026, 11, 29, 4)) == ms(2026, 11, 30, 4)


def test_a_tick_in_the_hour_that_spring_leaves_out_happens_once_after_it() -> None:
    daily = Schedule("30 2 * * *", tz="Europe/Berlin")
    first = daily.first_after(ms(2026, 3, 28, 12))
    assert first == ms(2026, 3, 29, 3)
    assert daily.first_after(first) == ms(2026, 3, 30, 2, 30)


def test_a_tick_in_the_hour_that_autumn_repeats_happens_once() -> None:
    daily = Schedule("30 2 * * *", tz="Europe/Berlin")
    first = daily.first_after(ms(2026, 10, 24, 12))
    second = daily.first_after(first)
    assert first in (ms(2026, 10, 25, 2, 30), ms(2026, 10, 25, 2, 30, fold=1))
    assert second == ms(2026, 10, 26, 2, 30)


def test_ticks_by_the_minute_go_on_through_both_changes() -> None:
    """No minute is left out and none comes twice: 25 hours have 1,500 of them, 23 hours 1,380."""
    every = Schedule("* * * * *", tz="Europe/Berlin")
    for day, minutes in ((ms(2026, 10, 25), 1500), (ms(2026, 3, 29), 1380)):
        ticks, at = 0, day
        while (at := every.first_after(at)) <= day + minutes * MINUTE_MS:
            assert at == day + (ticks + 1) * MINUTE_MS
            ticks += 1
        assert ticks == minutes


def test_of_six_fields_the_first_one_is_of_seconds() -> None:
    """A schedule may tick more often than once a minute."""
    often = Schedule("*/20 30 * * * *")
    first = often.first_after(ms(2026, 11, 29, 4))
    assert first == ms(2026, 11, 29, 4, 30)
    assert [often.first_after(first), often.first_after(first + 20_000)] == [first + 20_000, first + 40_000]
    assert often.first_after(first + 40_000) == first + HOUR_MS


DUE = ms(2026, 11, 29, 4)


@pytest.mark.parametrize(
    ("missed", "late_ms", "expected"),
    [
        (MissedPolicy.ONCE, 5, Plan(True, 0, DUE + HOUR_MS)),
        (MissedPolicy.ONCE, HOUR_MS - 1, Plan(True, 0, DUE + HOUR_MS)),
        (MissedPolicy.ONCE, HOUR_MS, Plan(True, 1, DUE + 2 * HOUR_MS)),
        (MissedPolicy.ONCE, 3 * HOUR_MS + 5, Plan(True, 3, DUE + 4 * HOUR_MS)),
        (MissedPolicy.SKIP, 5, Plan(True, 0, DUE + HOUR_MS)),
        (MissedPolicy.SKIP, LATE_MS, Plan(True, 0, DUE + HOUR_MS)),
        (MissedPolicy.SKIP, LATE_MS + 1, Plan(False, 0, DUE + HOUR_MS)),
        (MissedPolicy.SKIP, 3 * HOUR_MS + 5, Plan(False, 3, DUE + 4 * HOUR_MS)),
        (MissedPolicy.ALL, 3 * HOUR_MS + 5, Plan(True, 0, DUE + HOUR_MS)),
    ],
)
def test_missed_ticks(missed: MissedPolicy, late_ms: int, expected: Plan) -> None:
    assert Schedule("0 * * * *", missed=missed).plan(DUE, DUE + late_ms) == expected


def test_years_of_missed_ticks_cost_no_more_than_a_day_of_them() -> None:
    plan = Schedule("* * * * *").plan(DUE, DUE + 3 * 365 * 24 * HOUR_MS + 1)
    assert plan == Plan(True, MOST_COUNTED, DUE + 3 * 365 * 24 * HOUR_MS + MINUTE_MS)


@pytest.mark.parametrize(
    ("cron", "tz", "advice"),
    [
        ("every day", "UTC", "write one like '0 4"),
        ("61 * * * *", "UTC", "write one like '0 4"),
        ("0 4 31 2 *", "UTC", "write one like '0 4"),
        ("0 0 */29 2 1#5", "UTC", "no moment fits"),
        ("0 4 * * *", "Europe/Atlantis", "Europe/Berlin"),
        ("0 4 * * *", "../etc/passwd", "Europe/Berlin"),
    ],
)
def test_mistakes_say_what_to_write(cron: str, tz: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        Schedule(cron, tz=tz)


def test_a_definition_names_everything_that_matters() -> None:
    base = Schedule("0 4 * * *")
    assert base.definition == Schedule("0 4 * * *").definition
    others = [
        Schedule("0 5 * * *"),
        Schedule("0 4 * * *", tz="Europe/Berlin"),
        Schedule("0 4 * * *", each=True),
        Schedule("0 4 * * *", missed=MissedPolicy.ALL),
        Schedule("0 4 * * *", overlap=True),
    ]
    assert len({base.definition, *(other.definition for other in others)}) == 6
