"""What to do with a request after an attempt at it: a pure table of outcomes and numbers of deliveries.

`outcome_of` reads the outcome of a commit from the answer of commit.lua.

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

#: What commit.lua answers for a transaction. All of it is applied:
DONE = "done"
#: The request is no longer pending for this consumer.
NOT_MINE = "not-mine"
#: An expectation does not hold; side, hash and name of the key follow.
CONFLICT = "conflict "
#: The transaction would store something while memory is full.
FULL = "full"
#: The transaction sends a request that the rate of its operation does not allow now; ms and lane follow.
LIMITED = "limited "
#: The transaction sends a request that would have to wait, but too many requests wait already.
TOO_MANY = "too-many "
#: The transaction sends a request whose idempotency key was used with another body; the key follows.
KEY_REUSED = f"{KeyReused.code} "


def contended_key(answer: str) -> str:
    """Return the key that the answer of commit.lua names after a conflict. If it is a hash, its field follows."""
    _, _, hash_and_name = answer.removeprefix(CONFLICT).partition(" ")
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
    """Answer with an error: there is no room, or a rate or an idempotency key forbids what the request sends."""

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


def outcome_of(answer: str, *, is_answered: bool) -> Outcome:
    """Return the outcome of a commit from the answer of commit.lua. `is_answered`: a caller waits for the request."""
    if answer == DONE:
        return Outcome.DONE
    if answer == NOT_MINE:
        return Outcome.NOT_OURS
    if answer.startswith(CONFLICT):
        return Outcome.CONFLICT
    if answer == FULL or answer.startswith((TOO_MANY, LIMITED)):
        return Outcome.FULL
    if answer.startswith(KEY_REUSED):
        return Outcome.FULL if is_answered else Outcome.HOPELESS
    return Outcome.CRASHED


def settle(outcome: Outcome, deliveries: int, most: int, reason: str = "") -> Settlement:
    """Return what to do with a request that had this outcome. `most` is how many deliveries a request may have."""
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
