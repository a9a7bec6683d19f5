"""The table of outcomes, cell by cell."""

from __future__ import annotations

import pytest

from mesh.requests.settlement import (
    Bury,
    Commit,
    Defer,
    Expire,
    Forget,
    GiveBack,
    HandOn,
    Leave,
    Outcome,
    Redeliver,
    RefuseRequest,
    Rerun,
    Settlement,
    settle,
)

MOST = 3
TABLE: dict[Outcome, tuple[Settlement, Settlement]] = {
    Outcome.DONE: (Commit(), Commit()),
    Outcome.CONFLICT: (Rerun(), Rerun()),
    Outcome.CRASHED: (Redeliver(), Bury("why")),
    Outcome.HOPELESS: (Bury("why"), Bury("why")),
    Outcome.LATE: (Expire(), Expire()),
    Outcome.NOT_MINE: (Forget(), Forget()),
    Outcome.NOT_ALLOWED: (RefuseRequest("why"), RefuseRequest("why")),
    Outcome.TRY_FAILED: (Defer("why"), Defer("why")),
    Outcome.NO_ROOM: (GiveBack(), GiveBack()),
    Outcome.PARKED: (Leave(), Leave()),
    Outcome.ELSEWHERE: (HandOn("why"), HandOn("why")),
}


def test_every_outcome_is_in_the_table() -> None:
    """A new outcome needs a row in the table."""
    assert set(TABLE) == set(Outcome)


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("deliveries", [1, MOST - 1, MOST, MOST + 1])
def test_what_follows_from_an_outcome(outcome: Outcome, deliveries: int) -> None:
    """A crash is buried at the last allowed delivery."""
    expected = TABLE[outcome][deliveries >= MOST]
    assert settle(outcome, deliveries, MOST, "why") == expected
