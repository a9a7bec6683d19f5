"""One allowance, shared by everybody: a provider takes `limit` requests and then blocks for `block_ms`.

The limit is the provider's, so there is one count, in Redis, whoever asks. Who wants to send reserves first:

    match await quota.reserve():
        case Granted(reservation):  send, if reservation.may_send(), then say what became of it
        case Probing():             somebody else goes first; ask again shortly
        case Closed(allowance):     nothing can be sent before allowance.reopens_ms

    open ──limit reached, or the provider refuses──> closed ──block over──> open, or careful where in doubt
    careful: one request at a time ──as many successes as there are doubts, and one more──> open

What became of a request: `used`, `unsent` (provably never left: the slot is free again), `uncertain`, or
`refused`. One nobody answers for, its sender having died, counts as sent at the last moment it could have
been, costs its one slot, and leaves a doubt: the provider may have counted one less than we did. After
doubts, and after a refusal in spite of the count, requests go one at a time first, so that a wrong count
meets one refusal and not a stampede.

All times are Redis's own; no other clock is asked, but for how long ago this process asked for its slot.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mesh.errors import Unavailable

_SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Allowance:
    """How an allowance stands at one moment. Times are epoch ms of Redis's clock."""

    limit: int
    remaining: int
    #: when requests are taken again, as far as is known now; None while they are
    reopens_ms: int | None
    now_ms: int
    #: requests go one at a time until this many have succeeded
    caution: int = 0

    @property
    def retry_after_ms(self) -> int:
        """How long until requests are taken again; 0 while they are."""
        return 0 if self.reopens_ms is None else max(0, self.reopens_ms - self.now_ms)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The right to send one request, for a short time."""

    id: str
    #: `time.monotonic()` until which the request may leave; counted from before the reservation was asked for
    send_by: float

    def may_send(self) -> bool:
        """Whether the request may still leave. A process that slept through its right must not send."""
        return time.monotonic() < self.send_by


@dataclass(frozen=True, slots=True)
class Granted:
    """Send, and say what became of it."""

    reservation: Reservation
    allowance: Allowance


@dataclass(frozen=True, slots=True)
class Probing:
    """The provider may be open: one request is on its way to find out. Ask again shortly."""

    allowance: Allowance


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing can be sent before `allowance.reopens_ms`."""

    allowance: Allowance


Verdict = Granted | Probing | Closed


@dataclass(slots=True)
class Quota:
    """One allowance under `prefix`, the same for all who give the same prefix and numbers.

    `hold_ms` is how long a reservation lets its request leave; what has not left by then must not be sent.
    Every method raises Unavailable when Redis does not do its part.
    """

    redis: Redis
    prefix: str
    limit: int
    block_ms: int
    hold_ms: int = 2_000
    _scripts: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.limit, self.block_ms, self.hold_ms) < 1:
            raise ValueError("limit, block_ms and hold_ms are at least 1")
        common = (_SCRIPTS / "common.lua").read_text()
        self._scripts = {
            name: self.redis.register_script(common + (_SCRIPTS / f"{name}.lua").read_text())
            for name in ("reserve", "settle", "look")
        }

    async def reserve(self) -> Verdict:
        """Ask for one slot. Never waits for one."""
        reservation = Reservation(uuid.uuid4().hex, time.monotonic() + self.hold_ms / 1000)
        verdict, allowance = await self._insist("reserve", reservation.id)
        if verdict == "granted":
            return Granted(reservation, allowance)
        return Probing(allowance) if verdict == "probing" else Closed(allowance)

    async def used(self, reservation: Reservation) -> Allowance:
        """The provider took the request."""
        return await self._settle(reservation, "used")

    async def unsent(self, reservation: Reservation) -> Allowance:
        """The request provably never left; somebody else may have the slot."""
        return await self._settle(reservation, "unsent")

    async def uncertain(self, reservation: Reservation) -> Allowance:
        """Nobody knows whether the provider counted the request; the slot counts as used."""
        return await self._settle(reservation, "uncertain")

    async def refused(self, reservation: Reservation, retry_after_ms: int | None = None) -> Allowance:
        """The provider blocks in spite of our count: closed for everybody, for as long as it says."""
        retry_ms = self.block_ms if retry_after_ms is None else retry_after_ms
        return await self._settle(reservation, "refused", retry_ms)

    async def look(self) -> Allowance:
        """How the allowance stands now."""
        return (await self._run("look"))[1]

    async def _settle(self, reservation: Reservation, outcome: str, retry_ms: int = 0) -> Allowance:
        return (await self._insist("settle", reservation.id, outcome, retry_ms))[1]

    async def _insist(self, name: str, *arguments: str | int) -> tuple[str, Allowance]:
        """Twice if need be: a reservation's id makes both actions the same however often they are done."""
        try:
            return await self._run(name, *arguments)
        except Unavailable as error:
            if not isinstance(error.__cause__, RedisConnectionError | RedisTimeoutError):
                raise
            return await self._run(name, *arguments)

    async def _run(self, name: str, *arguments: str | int) -> tuple[str, Allowance]:
        keys = [f"{self.prefix}:allowance", f"{self.prefix}:held"]
        try:
            found = await self._scripts[name](keys, [self.limit, self.block_ms, self.hold_ms, *arguments])
        except (RedisError, OSError) as error:
            raise Unavailable("the shared allowance cannot be reached just now") from error
        return self._read(found)

    def _read(self, found: Sequence[Any]) -> tuple[str, Allowance]:
        verdict = found[0].decode() if isinstance(found[0], bytes) else str(found[0])
        now, taken, reopens, caution = (int(each) for each in found[1:])
        closed = reopens > now
        remaining = 0 if closed else max(0, self.limit - taken)
        return verdict, Allowance(self.limit, remaining, reopens if closed else None, now, caution)
