"""Which provider a message goes to: a pure decision, from what the allowance says and who asks.

the allowance says                     paid access       none
granted                                free              free
closed, over within the wait asked for wait              wait
closed, longer                         pay               refuse until then
others probe and take too long         pay               refuse for a moment
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mesh.quota.quota import Closed, Granted, Reservation, Verdict

Reason = Literal["closed", "refused", "probing", "unreachable", "failed"]
#: A probe is over soon.
PROBE_MS = 1_000


@dataclass(frozen=True, slots=True)
class SendFree:
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Wait:
    ms: int


@dataclass(frozen=True, slots=True)
class Pay:
    reason: Reason


@dataclass(frozen=True, slots=True)
class Refuse:
    retry_after_ms: int


Step = SendFree | Wait | Pay | Refuse


def next_step(verdict: Verdict, wait_left_ms: float, *, paid_access: bool, refused: bool = False) -> Step:
    """What to do next. `refused`: the free provider itself has just closed the door to this message."""
    if isinstance(verdict, Granted):
        return SendFree(verdict.reservation)
    probing = not isinstance(verdict, Closed)
    retry_ms = PROBE_MS if probing else max(1, verdict.allowance.retry_after_ms)
    if not probing and retry_ms <= wait_left_ms:
        return Wait(retry_ms)
    if paid_access:
        return Pay("probing" if probing else "refused" if refused else "closed")
    return Refuse(retry_ms)
