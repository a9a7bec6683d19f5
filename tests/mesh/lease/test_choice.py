"""Which database a starting replica takes, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.lease.choice import KeepWaiting, Observation, SurveyRow, Take, choose

BUS = 0
TTL_MS = 3000


def unused(database: int) -> SurveyRow:
    return SurveyRow(database, "", -2, "", 0, "")


def had(database: int, cls: str = "A") -> SurveyRow:
    """Free, with a class: it holds data of the mesh."""
    return SurveyRow(database, "", -2, cls, 5, "")


def held(database: int, state: str = "ready", pttl: int = TTL_MS) -> SurveyRow:
    return SurveyRow(database, f"{database + 100} replica-{database}", pttl, "A", 5, state)


def foreign(database: int) -> SurveyRow:
    return SurveyRow(database, "", -2, "", 7, "")


@pytest.mark.parametrize(
    ("rows", "alive", "expected"),
    [
        pytest.param([unused(0), unused(1), unused(2)], set(), 1, id="unused ones from 1 up"),
        pytest.param([unused(0), held(1), unused(2)], {1}, 2, id="the next unused one"),
        pytest.param([unused(0), unused(1), had(2)], set(), 2, id="one with data before an unused one"),
        pytest.param([had(0), had(1)], set(), 1, id="the bus last, also of those with data"),
        pytest.param([had(0), unused(1)], set(), 0, id="the bus with data before an unused one"),
        pytest.param([unused(0), held(1), held(2)], {1, 2}, 0, id="the bus when all others are leased"),
        pytest.param([unused(0), foreign(1), unused(2)], set(), 2, id="never one with foreign keys"),
        pytest.param([foreign(0), held(1)], {1}, 0, id="shared keys in the bus are not foreign"),
        pytest.param([unused(0), held(1), had(2)], set(), 2, id="one with data although a holder is in doubt"),
        pytest.param([unused(0), had(1, cls="x"), had(2)], set(), 2, id="none whose class somebody has changed"),
        pytest.param([replace(had(0), format="x"), had(1)], set(), 1, id="none whose format somebody has changed"),
    ],
)
def test_which_database_is_taken(rows: list[SurveyRow], alive: set[int], expected: int) -> None:
    """A database with a class comes first, then the numbers from 1 up, the bus last."""
    assert choose(rows, alive, BUS) == Take(expected)


@pytest.mark.parametrize(
    ("rows", "alive", "reason"),
    [
        pytest.param([held(0), held(1)], {0, 1}, "all 2 databases are leased", id="full"),
        pytest.param([unused(0), held(1)], set(), "database 1 may become free", id="a holder in doubt"),
        pytest.param([held(0), foreign(1)], {0}, "(1) hold keys that are not the mesh's", id="foreign keys"),
        pytest.param([held(0), had(1, cls="AB")], {0}, "text that the mesh does not write: db1:class;", id="a class"),
    ],
)
def test_the_reason_to_wait_is_told(rows: list[SurveyRow], alive: set[int], reason: str) -> None:
    """A restarted replica must not take a new database and leave its former one without a holder."""
    choice = choose(rows, alive, BUS)
    assert isinstance(choice, KeepWaiting) and reason in choice.reason


def test_a_lease_is_alive_when_a_renewal_was_seen() -> None:
    """The ttl went up. That of a dead holder only goes down, however much is left of it at first."""
    observation = Observation(TTL_MS)
    assert observation.update([held(1, pttl=1000), held(2)]) == set()
    assert observation.update([held(1, pttl=900), held(2, pttl=TTL_MS - 100)]) == set()
    assert observation.update([held(1, pttl=2400), held(2, pttl=TTL_MS)]) == {1, 2}
    least = TTL_MS * 3 // 4
    left = observation.update([held(1, pttl=least), held(2, pttl=least - 1)])
    assert left == {1}, "a holder that has missed a renewal may have died"


def test_a_new_lease_is_alive_and_a_draining_one_is_not() -> None:
    """A replica that was granted a lease lived a moment ago; one that drains is about to leave."""
    observation = Observation(TTL_MS)
    assert observation.update([unused(1)]) == set()
    assert observation.update([held(1)]) == {1}
    assert observation.update([replace(held(1, pttl=2000), lease="999 replica-new")]) == {1}
    assert observation.update([replace(held(1, state="draining"), lease="999 replica-new")]) == set()
