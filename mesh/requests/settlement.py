"""How a request ends: a pure table of outcome and deliveries.

    outcome of the handler            deliveries < most      deliveries = most
    done, refused                     Commit                 Commit
    conflict (its reads changed)      Rerun                  Rerun
    crashed (unforeseen exception)    Retry                  Bury
    unreadable (the entry is none)    Bury                   Bury
    late (deadline passed)            Expire                 Expire
    interrupted (drain, not started)  HandBack               HandBack
    not ours any more                 Forget                 Forget

A delivery beyond the most, such as of a request that killed its workers, is buried unseen.
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
    """Make the transaction true."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """Run the handler again, on what is true now."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Leave it pending; it is delivered again once it has been idle."""


@dataclass(frozen=True, slots=True)
class Bury:
    """Dead letter, and an answer to whoever waits."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Its time is over; nobody waits."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """Let another replica have it at once."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Somebody else has settled it."""


Settlement = Commit | Rerun | Retry | Bury | Expire | HandBack | Forget


def overdelivered(deliveries: int, most: int) -> bool:
    """Whether a request has been tried often enough not to be tried again."""
    return deliveries > most


def settle(outcome: Outcome, deliveries: int, most: int, reason: str = "") -> Settlement:
    """What follows from an outcome."""
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
