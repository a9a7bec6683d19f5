"""What to do with a request after its handler has run: a pure table of outcomes and numbers of deliveries.

The outcome of a commit is a word of its script: see `outcome_of`.

    outcome                                            deliveries < most      deliveries >= most
    done, refused                                      Commit                 Commit
    conflict (what it read has changed)                Rerun                  Rerun
    crashed (an exception that is not a refusal)       Redeliver              Bury
    hopeless (nobody can do it, and no caller waits)   Bury                   Bury
    late (its deadline has passed)                     Expire                 Expire
    not ours (another consumer has it)                 Forget                 Forget
    full (no room, or what it sends is refused)        RefuseFull             RefuseFull
    try failed (its operation has a Retry)             Defer                  Defer
    no room (to store or send it; no caller waits)     GiveBack               GiveBack
    parked (a pause or its limit has moved it)         Leave                  Leave
    elsewhere (other replicas serve its operation)     HandOn                 HandOn

A request that was delivered more often than allowed has killed the processes that worked on it. It is buried without
another try.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mesh.errors import KeyReused
from mesh.groups.deliveries import is_last

#: The words of the commit script. All is applied:
DONE = "done"
#: The request is no longer pending for this consumer.
NOT_MINE = "not-mine"
#: An expectation does not hold; side, hash and name of the key follow.
CONFLICT = "conflict "
#: The transaction would store something while memory is full.
FULL = "full"
#: The rate of a request that it sends does not allow it.
LIMITED = "limited "
#: More requests would wait for their time than may.
TOO_MANY = "too-many "
#: A request that it sends has an idempotency key that was used with another body.
KEY_REUSED = f"{KeyReused.code} "


def contended_key(word: str) -> str:
    """Return the key that a conflict's word names, with its field where it has one."""
    _, _, hash_and_name = word.removeprefix(CONFLICT).partition(" ")
    return hash_and_name.strip()


class Outcome(Enum):
    """How an attempt at a request ended."""

    DONE = auto()
    CONFLICT = auto()
    CRASHED = auto()
    HOPELESS = auto()
    LATE = auto()
    NOT_OURS = auto()
    FULL = auto()
    TRY_FAILED = auto()
    NO_ROOM = auto()
    PARKED = auto()
    ELSEWHERE = auto()


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply the transaction."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """Run the handler again, on what is stored now."""


@dataclass(frozen=True, slots=True)
class Redeliver:
    """Deliver the request again, after a pause."""


@dataclass(frozen=True, slots=True)
class Bury:
    """Make a dead letter, and answer the caller with GivenUp."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Remove the request: its deadline has passed, and no caller waits."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Do nothing: the request is over or in progress elsewhere."""


@dataclass(frozen=True, slots=True)
class RefuseFull:
    """Tell the caller that there is no room, or that a rate or an idempotency key does not allow what it sends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Defer:
    """Let the request wait for its next try, on no stream."""

    reason: str


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Let the request stay pending, and hold no worker: a replica that takes it over tries again."""


@dataclass(frozen=True, slots=True)
class HandOn:
    """Let the request wait for a moment, on no stream, so that another replica may read it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Do nothing: a script has moved the request to those that wait, or has put it on its stream anew."""


Settlement = Commit | Rerun | Redeliver | Bury | Expire | Forget | RefuseFull | Defer | GiveBack | HandOn | Leave


def outcome_of(word: str, *, is_answered: bool) -> Outcome:
    """Return the outcome of a commit; `is_answered` says that a caller waits for the request."""
    if word == DONE:
        return Outcome.DONE
    if word == NOT_MINE:
        return Outcome.NOT_OURS
    if word.startswith(CONFLICT):
        return Outcome.CONFLICT
    if word == FULL or word.startswith((TOO_MANY, LIMITED)):
        return Outcome.FULL
    if word.startswith(KEY_REUSED):
        return Outcome.FULL if is_answered else Outcome.HOPELESS
    return Outcome.CRASHED


def settle(outcome: Outcome, deliveries: int, most: int, reason: str = "") -> Settlement:
    """Return what to do with a request that had this outcome."""
    match outcome:
        case Outcome.DONE:
            return Commit()
        case Outcome.CONFLICT:
            return Rerun()
        case Outcome.CRASHED:
            return Bury(reason) if is_last(deliveries, most) else Redeliver()
        case Outcome.HOPELESS:
            return Bury(reason)
        case Outcome.LATE:
            return Expire()
        case Outcome.NOT_OURS:
            return Forget()
        case Outcome.FULL:
            return RefuseFull(reason)
        case Outcome.TRY_FAILED:
            return Defer(reason)
        case Outcome.NO_ROOM:
            return GiveBack()
        case Outcome.PARKED:
            return Leave()
        case Outcome.ELSEWHERE:
            return HandOn(reason)
