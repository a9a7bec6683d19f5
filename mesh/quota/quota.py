"""One allowance that all replicas share: a provider takes `limit` requests, and then refuses all for `block_ms`.

The provider counts the requests of all replicas together, so they share one count, in Redis. Before a sender sends a
request to the provider, it reserves a slot of the allowance:

    match await quota.reserve():
        case Granted(reservation):  send if reservation.may_send(), then record the outcome
        case Probing():             another sender tries first; ask again shortly
        case Closed(allowance):     no request can be sent before allowance.reopens_ms

    open ──limit reached, or the provider refuses──> closed ──block over──> open, or careful if our count may be wrong
    careful ──doubts + 1 requests succeed, one at a time──> open

The outcome of a request is `used`, `unsent` (it was certainly never sent, and its slot is free again), `uncertain`, or
`refused`. If a sender dies, its request gets no outcome. The request keeps its slot, and counts as sent at the last
moment at which it could have been sent. Such a request leaves a doubt, and so does an `uncertain` one: the provider's
count may be lower than ours by one.

Our count may be wrong after doubts, and after the provider has refused a request that our count allowed. Then the
allowance is careful: senders send one request at a time, so that a wrong count costs one refusal and not many. While
that request has no outcome, the others get Probing.

All moments are of Redis's clock, except `Reservation.send_by`, which is of the clock of this process.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mesh.errors import Unavailable
from mesh.wire.script import Script


def _with_common_part(name: str) -> Script:
    """Return a script of the quota. It begins with common.lua, the part that all of them share."""
    return Script(Script.beside(__file__, "common.lua").source + Script.beside(__file__, name).source)


#: The scripts of `reserve`, of the four methods that record an outcome, and of `look`.
RESERVE = _with_common_part("reserve.lua")
#: The server runs it even when its memory is full, so that outcomes can be recorded.
RECORD = Script(f"#!lua flags=allow-oom\n{_with_common_part('record.lua').source}")
LOOK = _with_common_part("look.lua")


@dataclass(frozen=True, slots=True)
class Allowance:
    """An allowance at one moment. Times are in ms of Redis's clock."""

    #: how many requests the provider takes before it blocks
    limit: int
    #: how many slots can still be reserved before the block; 0 while the provider is closed
    remaining: int
    #: the moment at which the provider will take requests again, as far as we know; None while it takes them
    reopens_ms: int | None
    #: the moment of this allowance
    now_ms: int
    #: how many requests must succeed, one at a time, before many may be sent at once; 0: the allowance is not careful
    caution: int = 0

    @property
    def retry_after_ms(self) -> int:
        """The time in ms until the provider takes requests again; 0 while it takes them."""
        return 0 if self.reopens_ms is None else max(0, self.reopens_ms - self.now_ms)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The right to send one request, for a short time."""

    id: str
    #: the request may be sent until `time.monotonic()` has this value; `hold_ms` begins just before Redis is asked
    send_by: float

    def may_send(self) -> bool:
        """Return whether the request may still be sent. A process that was stopped for too long must not send it."""
        return time.monotonic() < self.send_by


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may be sent; record its outcome."""

    reservation: Reservation
    allowance: Allowance


@dataclass(frozen=True, slots=True)
class Probing:
    """The provider may be open, and one request is on its way to find out. Ask again shortly."""

    allowance: Allowance


@dataclass(frozen=True, slots=True)
class Closed:
    """No request can be sent before `allowance.reopens_ms`."""

    allowance: Allowance


#: What `Quota.reserve` answers.
Verdict = Granted | Probing | Closed


@dataclass(slots=True)
class Quota:
    """One allowance. All programs that give the same prefix and the same numbers share it.

    After `limit` requests the provider is closed for `block_ms`, counted from the last of them. A request may be sent
    within `hold_ms` after its reservation, and not later. A longer time suits slow senders, but
    after the death of one the others may wait longer. Each method raises Unavailable when Redis fails.
    """

    redis: Redis
    prefix: str
    limit: int
    block_ms: int
    hold_ms: int = 2_000

    def __post_init__(self) -> None:
        if min(self.limit, self.block_ms, self.hold_ms) < 1:
            raise ValueError("limit, block_ms and hold_ms must be at least 1")

    async def reserve(self) -> Verdict:
        """Ask for one slot; do not wait for one."""
        reservation = Reservation(uuid.uuid4().hex, time.monotonic() + self.hold_ms / 1000)
        verdict, allowance = await self._run_with_one_retry(RESERVE, reservation.id)
        if verdict == "granted":
            return Granted(reservation, allowance)
        return Probing(allowance) if verdict == "probing" else Closed(allowance)

    async def used(self, reservation: Reservation) -> Allowance:
        """Record that the provider took the request."""
        return await self._record_outcome(reservation, "used")

    async def unsent(self, reservation: Reservation) -> Allowance:
        """Record that the request was certainly never sent; its slot is free again."""
        return await self._record_outcome(reservation, "unsent")

    async def uncertain(self, reservation: Reservation) -> Allowance:
        """Record that the provider may have counted the request; its slot counts as used."""
        return await self._record_outcome(reservation, "uncertain")

    async def refused(self, reservation: Reservation, retry_after_ms: int | None = None) -> Allowance:
        """Record that the provider refused the request. It is closed to all for `retry_after_ms`, or for `block_ms`."""
        retry_ms = self.block_ms if retry_after_ms is None else retry_after_ms
        return await self._record_outcome(reservation, "refused", retry_ms)

    async def look(self) -> Allowance:
        """Return the allowance as it is now."""
        return (await self._run(LOOK))[1]  # the first part, a verdict, is for `reserve`

    async def _record_outcome(self, reservation: Reservation, outcome: str, retry_ms: int = 0) -> Allowance:
        """Record an outcome, and return the allowance. Only the outcome `refused` uses `retry_ms`."""
        return (await self._run_with_one_retry(RECORD, reservation.id, outcome, retry_ms))[1]

    async def _run_with_one_retry(self, script: Script, *arguments: str | int) -> tuple[str, Allowance]:
        """Run a script; run it again if its answer was lost. The id of the reservation makes a second run harmless."""
        try:
            return await self._run(script, *arguments)
        except Unavailable as error:
            if not isinstance(error.__cause__, RedisConnectionError | RedisTimeoutError):
                raise
            return await self._run(script, *arguments)

    async def _run(self, script: Script, *arguments: str | int) -> tuple[str, Allowance]:
        """Run a script of the quota once. Return what `_read_answer` makes of its answer. Raises Unavailable."""
        keys = [f"{self.prefix}:allowance", f"{self.prefix}:held"]
        try:
            answer = await script.run(self.redis, keys, self.limit, self.block_ms, self.hold_ms, *arguments)
        except (RedisError, OSError) as error:
            raise Unavailable("the shared allowance cannot be used: Redis failed; try again") from error
        return self._read_answer(answer)

    def _read_answer(self, answer: Sequence[Any]) -> tuple[str, Allowance]:
        """Read what each script of the quota answers. The first part, the verdict, matters only after reserve.lua."""
        # A redis-py client without `decode_responses` returns bytes.
        verdict = answer[0].decode() if isinstance(answer[0], bytes) else str(answer[0])
        now_ms, taken, reopens_ms, caution = (int(number) for number in answer[1:])
        is_closed = reopens_ms > now_ms
        remaining = 0 if is_closed else max(0, self.limit - taken)
        return verdict, Allowance(self.limit, remaining, reopens_ms if is_closed else None, now_ms, caution)
