"""One allowance that all replicas share: a provider takes `limit` requests and then blocks for `block_ms`.

The limit belongs to the provider, so there is one count for everybody, in Redis. A sender reserves first:

    match await quota.reserve():
        case Granted(reservation):  send if reservation.may_send(), then record the outcome
        case Probing():             another sender tries first; ask again shortly
        case Closed(allowance):     no request can be sent before allowance.reopens_ms

    open ──limit reached, or the provider refuses──> closed ──block over──> open, or careful if our count may be wrong
    careful: one request at a time ──one success for each doubt, and one more──> open

The outcome of a request is `used`, `unsent` (it certainly never left, and its slot is free again), `uncertain`, or
`refused`. If a sender dies, its request has no outcome. It counts as sent, at the last moment at which it could have
left, and keeps its slot. It also leaves a doubt: the provider may have counted one request less than we did.

Our count may be wrong after doubts, and after the provider has refused a request that our count allowed. Then requests
go one at a time at first, so that a wrong count costs one refusal and not many at once.

All times are those of Redis's clock. Only `Reservation.send_by` uses the clock of this process.
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


def _with_common(name: str) -> Script:
    """Return a script of the quota. It begins with common.lua, the part that all of them share."""
    return Script(Script.beside(__file__, "common.lua").source + Script.beside(__file__, name).source)


RESERVE = _with_common("reserve.lua")
#: Runs when memory is full: it settles what was reserved.
RECORD = Script(f"#!lua flags=allow-oom\n{_with_common('record.lua').source}")
LOOK = _with_common("look.lua")


@dataclass(frozen=True, slots=True)
class Allowance:
    """An allowance at one moment. Times are epoch ms of Redis's clock."""

    limit: int
    remaining: int
    #: when the provider takes requests again, as far as is known; None while it takes them
    reopens_ms: int | None
    now_ms: int
    #: how many requests must still succeed one at a time
    caution: int = 0

    @property
    def retry_after_ms(self) -> int:
        """How long until the provider takes requests again; 0 while it takes them."""
        return 0 if self.reopens_ms is None else max(0, self.reopens_ms - self.now_ms)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The right to send one request, for a short time."""

    id: str
    #: `time.monotonic()` until which the request may leave, counted from before the reservation was sent
    send_by: float

    def may_send(self) -> bool:
        """Whether the request may still leave. A process that slept for too long must not send it."""
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


Verdict = Granted | Probing | Closed


@dataclass(slots=True)
class Quota:
    """One allowance, shared by all that use the same prefix and numbers.

    A request may leave for `hold_ms` after its reservation, and must not be sent later. Every method raises Unavailable
    when Redis fails.
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
        verdict, allowance = await self._run_surely(RESERVE, reservation.id)
        if verdict == "granted":
            return Granted(reservation, allowance)
        return Probing(allowance) if verdict == "probing" else Closed(allowance)

    async def used(self, reservation: Reservation) -> Allowance:
        """Record that the provider took the request."""
        return await self._record(reservation, "used")

    async def unsent(self, reservation: Reservation) -> Allowance:
        """Record that the request certainly never left; its slot is free again."""
        return await self._record(reservation, "unsent")

    async def uncertain(self, reservation: Reservation) -> Allowance:
        """Record that the provider may have counted the request; its slot counts as used."""
        return await self._record(reservation, "uncertain")

    async def refused(self, reservation: Reservation, retry_after_ms: int | None = None) -> Allowance:
        """Record that the provider refused the request. No sender sends another one until `retry_after_ms` is over."""
        retry_ms = self.block_ms if retry_after_ms is None else retry_after_ms
        return await self._record(reservation, "refused", retry_ms)

    async def look(self) -> Allowance:
        """Return the allowance as it is now."""
        return (await self._run(LOOK))[1]

    async def _record(self, reservation: Reservation, outcome: str, retry_ms: int = 0) -> Allowance:
        return (await self._run_surely(RECORD, reservation.id, outcome, retry_ms))[1]

    async def _run_surely(self, script: Script, *arguments: str | int) -> tuple[str, Allowance]:
        """Run a script; run it again if its answer was lost. The id of the reservation makes a second run harmless."""
        try:
            return await self._run(script, *arguments)
        except Unavailable as error:
            if not isinstance(error.__cause__, RedisConnectionError | RedisTimeoutError):
                raise
            return await self._run(script, *arguments)

    async def _run(self, script: Script, *arguments: str | int) -> tuple[str, Allowance]:
        keys = [f"{self.prefix}:allowance", f"{self.prefix}:held"]
        try:
            found = await script.run(self.redis, keys, self.limit, self.block_ms, self.hold_ms, *arguments)
        except (RedisError, OSError) as error:
            raise Unavailable("the shared allowance cannot be used: Redis failed; try again") from error
        return self._read(found)

    def _read(self, found: Sequence[Any]) -> tuple[str, Allowance]:
        verdict = found[0].decode() if isinstance(found[0], bytes) else str(found[0])
        now, taken, reopens, caution = (int(each) for each in found[1:])
        closed = reopens > now
        remaining = 0 if closed else max(0, self.limit - taken)
        return verdict, Allowance(self.limit, remaining, reopens if closed else None, now, caution)
