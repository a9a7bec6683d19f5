"""One computation for a value in a whole class: whoever begins it claims it, the others wait for the record.

    shared:values:computing:{class}:{value}    string, PX    "<replica> <request id>" of whoever computes it

A claim is kept alive while the computation runs, so it ends soon after a replica that died. It is deleted by the same
commit that writes the record, or by whoever gives up. It saves work and decides nothing: should two compute, the
commit's expectations still let only one of them write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from redis import exceptions as redis_errors

from mesh import DeadlineExceeded, Replica, Request, Transaction
from mesh.requests.protocol import NEVER
from mesh.wire.script import Script
from quart_app.values.jobs import SMALL
from quart_app.values.pool import FactorPool
from quart_app.values.store import WHERE

log = structlog.get_logger(__name__)

CLAIM = "values:computing:"
SHARED = "shared:"

#: what is expected to take less is computed without a claim, which costs two round trips
CLAIMED_S = 0.05
#: a claim's life; it is renewed three times in it
CLAIM_MS = 3000
#: between two looks at the record and the claim of another
LOOK_S = 0.05
#: an answer with what is known leaves this long before the deadline, so that it arrives
MARGIN_S = 0.25
#: results kept for requests that are run again after a conflict
MOST_FINISHED = 256

#: what others see of a computation
SHOWN = ("stage", "elapsed_s", "estimate_s", "factors", "unfactored")

#: Renew (ARGV 2 > 0) or give up a claim, if it is still ours. KEYS: claim. ARGV: owner, ms.
TEND = Script(
    """
local claim, owner, ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('GET', claim) ~= owner then return 0 end
if ms > 0 then return redis.call('PEXPIRE', claim, ms) end
return redis.call('DEL', claim)
"""
)


def claim_key(cls: str, value: int) -> str:
    """The claim's key among the shared ones."""
    return f"{CLAIM}{cls}:{value}"


def release(transaction: Transaction, cls: str, values: Iterable[int]) -> None:
    """Let the claims end with the commit that writes the records."""
    for value in values:
        if value >= SMALL:
            transaction.shared.delete(claim_key(cls, value))


@dataclass(frozen=True, slots=True)
class Claim:
    """Who computes a value."""

    key: str
    owner: str


class Computing:
    """What handlers get factors from."""

    def __init__(self, replica: Callable[[], Replica], pool: FactorPool) -> None:
        self._replica = replica
        self._pool = pool
        self._finished: OrderedDict[tuple[str, int], list[int]] = OrderedDict()

    async def small(self, values: Sequence[int]) -> list[list[int]]:
        """The factors of values that fit in a machine word, here and now."""
        return await self._pool.factorise_words(values)

    async def large(self, value: int, request: Request, place: str | None) -> list[int] | None:
        """A value's factors; None where another has meanwhile written its record, so that it is to be read again.

        `place` is where the record was said to be. Raises Busy, DeadlineExceeded, Unavailable.
        """
        finished = self._finished.get((request.id, value))
        if finished is not None:
            return finished
        if self._pool.expected_s(value) < CLAIMED_S:
            return await self._compute(value, request)
        return await self._alone(value, request, place)

    def progress(self, value: int) -> dict[str, Any] | None:
        """How the factorisation of a value is going; None where it is not under way here."""
        known = self._pool.progress(value)
        if known is None:
            return None
        shown = asdict(known)
        return {"value": shown.pop("number"), **{name: shown[name] for name in SHOWN}}

    async def _alone(self, value: int, request: Request, place: str | None) -> list[int] | None:
        replica = self._replica()
        claim = Claim(SHARED + claim_key(replica.cls, value), f"{replica.id} {request.id}")
        while not await self._take(claim):
            if self._left_s(request) <= 0:
                raise DeadlineExceeded("another replica did not end its factorisation in time", value=value)
            if await replica.store().shared.get(f"{WHERE}{value}") != place:
                return None
            await asyncio.sleep(LOOK_S)
        async with self._kept(claim):
            # Written between our look and our claim? Then the claim was free because the record is there.
            if await replica.store().shared.get(f"{WHERE}{value}") != place:
                await self._tend(claim, 0)
                return None
            return await self._compute(value, request)

    async def _compute(self, value: int, request: Request) -> list[int]:
        try:
            factors = await self._pool.factorise(
                value, max(self._left_s(request), 0.001), patient="job" in request.body
            )
        except DeadlineExceeded as error:
            error.facts["value"] = value
            raise
        self._finished[request.id, value] = factors
        while len(self._finished) > MOST_FINISHED:
            self._finished.popitem(last=False)
        return factors

    def _left_s(self, request: Request) -> float:
        if request.deadline == NEVER:
            return 3600.0
        return (request.deadline - self._replica().now_ms()) / 1000 - MARGIN_S

    async def _take(self, claim: Claim) -> bool:
        taken = await self._replica().shared.set(claim.key, claim.owner, nx=True, px=CLAIM_MS)
        # Ours already: the same request, delivered again.
        return bool(taken) or await self._tend(claim, CLAIM_MS)

    @contextlib.asynccontextmanager
    async def _kept(self, claim: Claim) -> AsyncIterator[None]:
        """Keep a claim alive; give it up where the computation fails. Where it succeeds the commit ends it."""
        # No task group: it would wrap the error that the handler's caller is to see.
        keeping = asyncio.create_task(self._keep(claim))
        try:
            yield
        except BaseException:
            # Cancelled or not, the others should not wait for the claim to die by itself.
            await self._tend(claim, 0)
            raise
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _keep(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(CLAIM_MS / 3000)
            await self._tend(claim, CLAIM_MS)

    async def _tend(self, claim: Claim, milliseconds: int) -> bool:
        """Renew or give up a claim; False where it is not ours, or cannot be reached: it then ends by itself."""
        client = self._replica().shared
        try:
            return bool(await client.eval(TEND.source, 1, claim.key, claim.owner, milliseconds))
        except redis_errors.RedisError as error:
            log.warning("a claim could not be tended", error=str(error))
            return False
