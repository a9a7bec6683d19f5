"""The decision table, row by row."""

from __future__ import annotations

import pytest

from mesh.quota.quota import Allowance, Closed, Granted, Probing, Reservation, Verdict
from quart_app.messages.decision import Pay, Refuse, SendFree, Step, WaitForFree, next_step

RESERVATION = Reservation("r", 0.0)
OPEN = Allowance(10, 5, None, 1_000)
SHUT = Allowance(10, 0, 4_000, 1_000)


@pytest.mark.parametrize(
    ("verdict", "wait_left_ms", "paid_access", "step"),
    [
        (Granted(RESERVATION, OPEN), 0, True, SendFree(RESERVATION)),
        (Granted(RESERVATION, OPEN), 9_000, False, SendFree(RESERVATION)),
        (Closed(SHUT), 0, True, Pay("closed")),
        (Closed(SHUT), 2_999, True, Pay("closed")),
        (Closed(SHUT), 3_000, True, WaitForFree(3_000)),
        (Closed(SHUT), 3_000, False, WaitForFree(3_000)),
        (Closed(SHUT), 0, False, Refuse(3_000)),
        (Probing(OPEN), 0, True, Pay("probing")),
        (Probing(OPEN), 9_000, True, Pay("probing")),
        (Probing(OPEN), 9_000, False, Refuse(1_000)),
    ],
)
def test_each_row_of_the_table(verdict: Verdict, wait_left_ms: float, paid_access: bool, step: Step) -> None:
    """Free whenever it is open; waiting before paying; never paying without paid access."""
    assert next_step(verdict, wait_left_ms, has_paid_access=paid_access) == step


def test_a_refused_message_is_paid_for_with_that_reason() -> None:
    """The metrics tell a wrong count from a closed provider."""
    assert next_step(Closed(SHUT), 0, has_paid_access=True, was_refused=True) == Pay("refused")
