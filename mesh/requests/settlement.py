"""How a request ends: a pure table of outcome and deliveries.

    outcome of the handler            deliveries < most      deliveries = most
    done, refused                     Commit                 Commit
    conflict (its reads changed)      Rerun                  Rerun
    crashed (unforeseen exception)    Retry                  Bury
    unreadable (no valid entry)       Bury                   Bury
    late (deadline passed)            Expire                 Expire
    interrupted (drain, not started)  HandBack               HandBack
    not ours any more                 Forget                 Forget

A request with more deliveries than that, such as one that killed its workers, is buried without another run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Outcome(Enum):
    DONE = auto()
    CONFLICT = auto()
    CRASHED = auto()
    UNREADABLE = auto()
    LATE = auto()
    INTERRUPTED = auto()
    NOT_OURS = auto()


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit the transaction."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """Run the handler again, with the present values."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Leave the request pending; it is delivered again after the claim idle time."""


@dataclass(frozen=True, slots=True)
class Bury:
    """Write a dead letter and answer the caller with an error."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """End the request: its deadline has passed, and no caller waits."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """Return the request to its stream, so that another replica takes it at once."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Do nothing: another replica has settled the request."""


Settlement = Commit | Rerun | Retry | Bury | Expire | HandBack | Forget


def overdelivered(deliveries: int, most: int) -> bool:
    """Return whether a request was delivered more often than allowed."""
    return deliveries > most


def settle(outcome: Outcome, deliveries: int, most: int, reason: str = "") -> Settlement:
    """Return what becomes of a request after an outcome."""
    match outcome:
        case Outcome.DONE:
            return Commit()
        case Outcome.CONFLICT:
            return Rerun()
        case Outcome.CRASHED:
            return Bury(reason) if deliveries >= most else Retry()
        case Outcome.UNREADABLE:
            return Bury(reason)
        case Outcome.LATE:
            return Expire()
        case Outcome.INTERRUPTED:
            return HandBack()
        case Outcome.NOT_OURS:
            return Forget()
