"""One computation for a value in a whole class: a replica claims the value first, the others wait for the record.

    shared:values:computing:{class}:{value}    string, PX    "<replica> <request id>" of the claim's owner

A claim is renewed while the computation runs, so it ends soon after its replica has died. The commit that writes the
record deletes the claim; an owner that gives up deletes it, too. A claim only saves work. If two replicas compute the
same value all the same, the expectations of the commit let one of them write.

Claims travel over the replica's link, so those of many requests leave in one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from mesh import DeadlineExceeded, MeshError
from mesh.raw import NEVER, Effects, Replica, Request, Script
from quart_app.values import notation
from quart_app.values.notation import is_small
from quart_app.values.pace import Pace
from quart_app.values.pool import FactorPool
from quart_app.values.store import WHERE

log = structlog.get_logger(__name__)

CLAIM = "values:computing:"

#: A value that is expected to take less time than this gets no claim: a claim costs two round trips.
CLAIMED_S = 0.05
#: A claim ends so long after its last renewal. It is renewed three times as often.
CLAIM_MS = 3000
#: Between two tries to take a claim that another request holds.
LOOK_S = 0.05
#: Longest wait for the server to hear that a claim is given up; the claim then ends by itself.
GIVE_UP_S = 1.0
#: A computation ends this long before the deadline, so that its answer arrives in time.
MARGIN_S = 0.25
#: Results kept for requests that run again after a conflict.
MOST_FINISHED = 256

#: What clients see of a computation.
SHOWN = ("stage", "elapsed_s", "estimate_s", "factors", "unfactored")

#: Takes a claim, or renews it if it is ours already; so it does no harm if the script runs twice.
#: KEYS: claim, place. ARGV: owner, ms, the place that was read before ("" for none).
#: Returns "taken"; "held" by another owner; or "written": the record has been written since.
TAKE = Script(
    """
local claim_key, place_key = KEYS[1], KEYS[2]
local owner, ms, place = ARGV[1], ARGV[2], ARGV[3]
local holder, now_at = unpack(redis.call('MGET', claim_key, place_key))
if (now_at or '') ~= place then return 'written' end
if holder and holder ~= owner then return 'held' end
redis.call('SET', claim_key, owner, 'PX', ms)
return 'taken'
"""
)

#: Renews a claim (ARGV 2 > 0) or gives it up, if it is still ours. KEYS: claim. ARGV: owner, ms.
TEND = Script(
    """
local claim_key, owner, ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('GET', claim_key) ~= owner then return 0 end
if ms > 0 then return redis.call('PEXPIRE', claim_key, ms) end
return redis.call('DEL', claim_key)
"""
)


def claim_key(cls: str, value: str) -> str:
    """Return the claim's key among the shared ones."""
    return f"{CLAIM}{cls}:{value}"


def release(transaction: Effects, cls: str, values: Iterable[str]) -> None:
    """Let the claims end with the commit that writes the records."""
    for value in values:
        if not is_small(value):
            transaction.shared.delete(claim_key(cls, value))


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim of one request on one value."""

    key: str
    owner: str


class Computing:
    """Finds factors for handlers."""

    def __init__(self, replica: Callable[[], Replica], pool: FactorPool, pace: Pace) -> None:
        self._replica = replica
        self._pool = pool
        self._pace = pace
        self._finished: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def small(self, values: Sequence[str]) -> list[str]:
        """Return the factors of values that fit in a machine word."""
        return await self._pool.factorise_words([int(value) for value in values])

    async def at_once(self, value: str) -> str | None:
        """Return the factors of any value if a moment is enough to find them, else None."""
        return await self._pool.at_once(int(value))

    async def large(self, value: str, request: Request, place: str | None) -> str | None:
        """Return a value's factors; None if another request has written its record, which is then to be read again.

        `place` is where the record was said to be. Raises Busy, DeadlineExceeded, Unavailable.
        """
        finished = self._finished.get((request.id, value))
        if finished is not None:
            return finished
        number = int(value)
        found = await self._pool.at_once(number)
        if found is not None:
            return found
        if self._pool.expected_s(number) < CLAIMED_S:
            return await self._compute(value, number, request)
        return await self._alone(value, number, request, place)

    def progress(self, value: str) -> dict[str, Any] | None:
        """Return how the factorisation of a value is going; None if none is under way here."""
        if is_small(value):
            return None
        known = self._pool.progress(int(value))
        if known is None:
            return None
        shown = asdict(known) | {"factors": notation.expanded(known.factors)}
        return {"value": shown["number"], **{name: shown[name] for name in SHOWN}}

    async def _alone(self, value: str, number: int, request: Request, place: str | None) -> str | None:
        replica = self._replica()
        claim = Claim(claim_key(replica.cls, value), f"{replica.id} {request.id}")
        names = [claim.key, WHERE + value]
        while True:
            found = await replica.store().shared.script(TAKE, names, claim.owner, CLAIM_MS, place or "")
            if found == "taken":
                break
            if found == "written":
                return None
            if self._left_s(request) <= 0:
                raise DeadlineExceeded("another request did not end its factorisation in time", value=number)
            await asyncio.sleep(LOOK_S)
        async with self._kept(claim):
            return await self._compute(value, number, request)

    async def _compute(self, value: str, number: int, request: Request) -> str:
        try:
            factors = await self._pool.factorise(
                number, max(self._left_s(request), 0.001), patient="job" in request.body
            )
        except DeadlineExceeded as error:
            error.facts["value"] = number
            raise
        self._finished[request.id, value] = factors
        while len(self._finished) > MOST_FINISHED:
            self._finished.popitem(last=False)
        return factors

    def _left_s(self, request: Request) -> float:
        if request.deadline == NEVER:
            return 3600.0
        return (request.deadline - self._replica().now_ms()) / 1000 - MARGIN_S

    @contextlib.asynccontextmanager
    async def _kept(self, claim: Claim) -> AsyncIterator[None]:
        """Renew a claim; give it up if the computation fails. If it succeeds, the commit ends the claim."""
        # No task group: it would wrap the error that the handler's caller is to see.
        keeping = asyncio.create_task(self._keep(claim))
        try:
            yield
        except BaseException:
            # A cancellation gives the claim up, too: others should not wait until it ends by itself.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GIVE_UP_S):
                    await self._tend(claim, 0)
            raise
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _keep(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(CLAIM_MS / 3000)
            await self._tend(claim, CLAIM_MS)

    async def _tend(self, claim: Claim, milliseconds: int) -> None:
        """Renew a claim, or give it up. If the server cannot be reached, the claim ends by itself."""
        try:
            await self._replica().store().shared.script(TEND, [claim.key], claim.owner, milliseconds)
        except MeshError as error:
            log.warning("claim not renewed" if milliseconds else "claim not given up", error=str(error))
