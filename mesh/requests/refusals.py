"""The errors that callers get when submit.lua or commit.lua refuses something."""

from __future__ import annotations

from mesh import roster
from mesh.errors import (
    Busy,
    Incomplete,
    KeyReused,
    Limited,
    MeshError,
    NoReplica,
    SetupError,
    Unavailable,
    redis_is_full,
)
from mesh.requests.once import key_reused_error
from mesh.requests.settlement import FULL, KEY_REUSED, LIMITED, TOO_MANY

#: submit.lua's code for an address whose replica is expected back, or for databases that a gather would lack.
MISSING = "missing"
#: submit.lua's code for a request for later that the Redis user may not send.
FORBIDDEN = "forbidden"


def refusal(code: str, about: str) -> MeshError:
    """Return the error for a code of submit.lua.

    It depends on the code what `about` is: an address, a key, an idempotency key, numbers of databases, the error of
    Redis, or the two parts that `limited_error` reads.
    """
    if code == NoReplica.code:
        return roster.absence_error(about, is_expected_back=False)
    if code == MISSING and about[0].isdigit():  # numbers of databases: the name of an address begins with a letter
        return incomplete_error([int(number) for number in about.split()])
    if code == MISSING:
        return roster.absence_error(about, is_expected_back=True)
    if code == FULL:
        return redis_is_full()
    if code == FORBIDDEN:
        return SetupError(
            f'this Redis user may not send requests for later: {about}; see "The user of a client" in docs/keys.md'
        )
    if code == KeyReused.code:
        return key_reused_error(about)
    # The constants LIMITED and TOO_MANY end with a space, because commit.lua puts further words behind them.
    if code == LIMITED.strip():
        return limited_error(about)
    if code == TOO_MANY.strip():
        return too_many_error()
    if code == "wrong-type":
        # 5 s: a person must delete the key first, so an earlier retry would hardly succeed.
        return Unavailable(f"{about} is a key of the wrong type; delete it with redis-cli", retry_after=5)
    # The code that is left is "busy": the stream of the address is full.
    name = roster.name_of(about)
    return Busy(f"the queue of {name} is full; retry after 1 s", retry_after=1, address=about)


def commit_error(answer: str) -> MeshError:
    """Return the error for an answer of commit.lua that is neither "done" nor a conflict."""
    if answer == FULL:
        return redis_is_full()
    if answer.startswith(TOO_MANY):
        return too_many_error()
    if answer.startswith(KEY_REUSED):
        return key_reused_error(answer.removeprefix(KEY_REUSED))
    if answer.startswith(LIMITED):
        return limited_error(answer.removeprefix(LIMITED))
    return MeshError(f"the transaction was not applied: {answer}")


def too_many_error() -> Busy:
    """Return the error for a request that would have to wait while too many requests wait already."""
    return Busy("too many requests wait for their time; retry after 1 s", retry_after=1)


def limited_error(about: str) -> Limited:
    """Return the error for a request that comes too soon. `about`: ms until its rate allows it, and its lane."""
    wait_ms, _, lane = about.partition(" ")
    op, _, value = lane.partition(":")
    op_and_value = f"{op} for {value!r:.100}" if value else op
    return Limited(
        f"too many requests of {op_and_value}; retry after {int(wait_ms) / 1000:g} s", retry_after=int(wait_ms) / 1000
    )


def incomplete_error(databases: list[int]) -> Incomplete:
    """Return the error of a gather that would lack the replies of these databases; their replicas are expected back."""
    return Incomplete(
        f"databases that hold data have no replica at the moment: {', '.join(map(str, databases))}; "
        f"retry after {roster.RETRY_AFTER_S} s",
        missing=databases,
        retry_after=roster.RETRY_AFTER_S,
    )
