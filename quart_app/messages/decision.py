"""Decides which provider delivers a message, from the allowance and the account's right to the paid provider. Pure.

the free provider's allowance                      paid access        no paid access
granted                                            free               free
closed, and opens within the rest of `max_wait_ms` wait               wait
closed for longer                                  pay                refuse until it opens
another request probes and takes too long          pay                refuse for a moment
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mesh.quota import Closed, Granted, Reservation, Verdict

#: Why a message is paid for. "unreachable" and "failed" come from `Delivery`, after a try to send to the free provider.
Reason = Literal["closed", "refused", "probing", "unreachable", "failed"]
#: The Retry-After while another request probes. Nobody knows then when the free provider opens, but a probe ends soon.
PROBE_RETRY_MS = 1_000


@dataclass(frozen=True, slots=True)
class SendFree:
    """Send the message to the free provider, with this reservation."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class WaitForFree:
    """Wait until the free provider opens, then decide again. `wait_ms` is the time until then."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class Pay:
    """Send the message to the paid provider."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer that neither provider can be used; the client should try again after `retry_after_ms`."""

    retry_after_ms: int


#: What a message does next.
Step = SendFree | WaitForFree | Pay | Refuse


def next_step(verdict: Verdict, wait_left_ms: float, *, has_paid_access: bool, was_refused: bool = False) -> Step:
    """Return what to do next. `was_refused`: the free provider itself has refused this message before."""
    if isinstance(verdict, Granted):
        return SendFree(verdict.reservation)
    # Granted was handled above, so the verdict is Closed or Probing.
    is_probing = not isinstance(verdict, Closed)
    # At least 1 ms: with 0 the message would ask Redis again without a pause.
    reopens_in_ms = PROBE_RETRY_MS if is_probing else max(1, verdict.allowance.retry_after_ms)
    if not is_probing and reopens_in_ms <= wait_left_ms:
        return WaitForFree(reopens_in_ms)
    if has_paid_access:
        return Pay("probing" if is_probing else "refused" if was_refused else "closed")
    return Refuse(reopens_in_ms)
