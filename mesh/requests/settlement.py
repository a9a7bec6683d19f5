"""What to do with a request after an attempt at it: a pure table of outcomes and numbers of deliveries.

`outcome_of` reads the outcome of a commit from the answer of commit.lua. The runner and the consumer give the outcomes
of attempts without a commit. The consumer acts on "done" and "conflict" itself: their rows only complete the table.
"most" is the setting `max_deliveries`.

    outcome                                            deliveries < most      deliveries >= most
    done (its effect or its refusal is applied)        Commit                 Commit
    conflict (what it read has changed)                Rerun                  Rerun
    crashed (an exception that is not a refusal)       Redeliver              Bury
    hopeless (no further delivery can help)            Bury                   Bury
    late (its deadline has passed)                     Expire                 Expire
    not mine (another consumer has it, or it is over)  Forget                 Forget
    not allowed (no room, or a send is refused)        RefuseRequest          RefuseRequest
    try failed (its operation has a Retry)             Defer                  Defer
    no room (for its effect or to wait; no caller)     GiveBack               GiveBack
    parked (a pause or its limit has moved it)         Leave                  Leave
    elsewhere (other replicas serve its operation)     HandOn                 HandOn

If all allowed deliveries of a request ended without an outcome, the next delivery does not call the handler. The runner
then returns "crashed", so the request is buried.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mesh.errors import KeyReused
from mesh.groups.deliveries import is_last

# What commit.lua answers for a transaction.

#: The whole transaction is applied.
DONE = "done"
#: The request is no longer pending for this consumer.
NOT_MINE = "not-mine"
#: An expectation does not hold. Then follow three words: "1" (own keys) or "0" (shared keys), the key of the hash, and
#: the name of the field. For a key that is no hash, the second word is empty, and the third is the key.
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
    """Return the key that the answer of commit.lua names after a conflict; of a hash also the field, after a space."""
    # Before the space is the side. If the hash is empty, `hash_and_name` begins with a space.
    _, _, hash_and_name = answer.removeprefix(CONFLICT).partition(" ")
    return hash_and_name.strip()


class Outcome(Enum):
    """How an attempt at a request ended."""

    DONE = auto()
    CONFLICT = auto()
    CRASHED = auto()
    HOPELESS = auto()
    LATE = auto()
    NOT_MINE = auto()
    NOT_ALLOWED = auto()
    TRY_FAILED = auto()
    NO_ROOM = auto()
    #: it was moved away by park.lua, because of a pause, or by enter.lua, because of its limit
    PARKED = auto()
    ELSEWHERE = auto()


@dataclass(frozen=True, slots=True)
class Commit:
    """Do nothing more: commit.lua has applied the transaction."""


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
    """Do nothing: the request has ended, or another consumer has it."""


@dataclass(frozen=True, slots=True)
class RefuseRequest:
    """Answer with an error: there is no room, or a rate or an idempotency key forbids a send of the transaction.

    `reason` is the answer of commit.lua.
    """

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
    """Do nothing: park.lua or enter.lua has let the request wait, or has appended it to its stream again."""


Settlement = Commit | Rerun | Redeliver | Bury | Expire | Forget | RefuseRequest | Defer | GiveBack | HandOn | Leave


def outcome_of(answer: str, *, has_caller: bool) -> Outcome:
    """Return the outcome of a commit from the answer of commit.lua. `has_caller`: a caller waits for the reply.

    Any other answer says why a write or a send is not possible: then the attempt has crashed.
    """
    if answer == DONE:
        return Outcome.DONE
    if answer == NOT_MINE:
        return Outcome.NOT_MINE
    if answer.startswith(CONFLICT):
        return Outcome.CONFLICT
    if answer == FULL or answer.startswith((TOO_MANY, LIMITED)):
        return Outcome.NOT_ALLOWED
    # Without a caller, the consumer tries again what is not allowed, because room comes back. A used key stays used for
    # long, so trying again would not help.
    if answer.startswith(KEY_REUSED):
        return Outcome.NOT_ALLOWED if has_caller else Outcome.HOPELESS
    return Outcome.CRASHED


def settle(outcome: Outcome, deliveries: int, max_deliveries: int, reason: str = "") -> Settlement:
    """Return what the consumer has to do with a request that had this outcome."""
    match outcome:
        case Outcome.DONE:
            return Commit()
        case Outcome.CONFLICT:
            return Rerun()
        case Outcome.CRASHED:
            return Bury(reason) if is_last(deliveries, max_deliveries) else Redeliver()
        case Outcome.HOPELESS:
            return Bury(reason)
        case Outcome.LATE:
            return Expire()
        case Outcome.NOT_MINE:
            return Forget()
        case Outcome.NOT_ALLOWED:
            return RefuseRequest(reason)
        case Outcome.TRY_FAILED:
            return Defer(reason)
        case Outcome.NO_ROOM:
            return GiveBack()
        case Outcome.PARKED:
            return Leave()
        case Outcome.ELSEWHERE:
            return HandOn(reason)
