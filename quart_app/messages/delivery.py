"""One message, from the wish to handle it to the answer: free whenever that is open, paid where it must be.

A message is worked on in a task of the dispatcher's, not of the HTTP request: whoever hangs up in the middle leaves
no reservation without its outcome behind. Every step has a bound, so every task ends by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import structlog

from mesh.errors import MeshError, Unavailable
from mesh.quota.quota import Allowance, Closed, Granted, Probing, Quota, Reservation, Verdict
from quart_app.http.problems import Problem
from quart_app.messages.decision import PROBE_MS, Pay, Reason, Refuse, SendFree, Wait, next_step
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.provider import TOO_LATE, Answered, Blocked, Failed, Gateway, Outcome, Unknown, Unsent
from quart_app.messages.settings import MessageSettings

log = structlog.get_logger(__name__)

#: How often one of those who wait for a probe asks again.
ASK_AGAIN_S = 0.02
#: Tries to write down what became of a reservation; after them it counts as lost, and heals by itself.
SETTLE_TRIES = 3
#: Returns to the free provider right before paying, should it have opened meanwhile.
SECOND_THOUGHTS = 3


@dataclass(frozen=True, slots=True)
class Delivery:
    """A handled message."""

    provider: Literal["free", "paid"]
    response: str


class Undelivered(Problem):
    """The message was not handled, and why."""

    def __init__(self, status: int, detail: str, *, reason: str, retry_after_ms: int | None = None) -> None:
        super().__init__(status, detail, retry_after=None if retry_after_ms is None else retry_after_ms / 1000)
        self.reason = reason


class NotAdmitted(Problem):
    """Nothing of it was begun."""


@dataclass(slots=True)
class Order:
    """A message to be handled, and for whom."""

    id: str
    message: str
    max_wait_ms: int
    #: asks the store, each time
    has_paid_access: Callable[[], Awaitable[bool]]
    #: to be true before anything leaves; false means that somebody else has taken the message over
    begin_sending: Callable[[], Awaitable[bool]]
    wait_until: float = 0.0
    #: the free provider has closed the door to it
    refused: bool = False
    #: a provider has it, or may have it: the same key must not send it again
    arrived: bool = False
    second_thoughts: int = SECOND_THOUGHTS

    @property
    def wait_left_ms(self) -> float:
        return max(0.0, (self.wait_until - time.monotonic()) * 1000)


class Turn:
    """From asking for a slot until the request that got it has left: one message of a replica at a time.

    So whoever is killed takes at most one slot along that no request had used. And those who wait for a probe are
    no crowd: one asks for all.
    """

    def __init__(self, line: asyncio.Lock) -> None:
        self._line = line
        self._mine = False

    async def take(self, until: float) -> bool:
        """Wait for it until then, by the loop's clock. False: it did not come."""
        try:
            async with asyncio.timeout_at(until):
                self._mine = await self._line.acquire()
        except TimeoutError:
            return False
        return True

    def pass_on(self) -> None:
        """To the next one; once is enough."""
        if self._mine:
            self._mine = False
            self._line.release()


@dataclass(slots=True)
class Dispatcher:
    """All messages of one replica."""

    quota: Quota
    free: Gateway
    paid: Gateway
    metrics: MessageMetrics
    settings: MessageSettings
    _tasks: asyncio.TaskGroup | None = None
    _in_flight: int = 0
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    #: of those who ask the allowance
    _line: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: whether the free provider could be reached the last time; if not, nobody waits for others to try
    _free_in_reach: bool = True

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take messages. Leaving waits for those under way; none of them takes longer than `work_ms`."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                try:
                    yield
                finally:
                    self._closing.set()
        finally:
            self._tasks = None
            await self.free.close()
            await self.paid.close()

    @property
    def closing(self) -> bool:
        """Whether the replica is about to leave."""
        return self._closing.is_set()

    async def run(self, work: Callable[[], Awaitable[Delivery]], wait_ms: int) -> Delivery:
        """Do this in a task that outlives whoever waits for it. Raises NotAdmitted, and what `work` raises."""
        if self._tasks is None or self.closing:
            raise NotAdmitted(503, "this replica is about to leave", retry_after=1)
        if self._in_flight >= self.settings.max_in_flight:
            raise NotAdmitted(503, "as many messages as can be are being handled", retry_after=1)
        result: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._in_flight += 1
        self._tasks.create_task(self._work(work, (self.settings.work_ms + wait_ms) / 1000, result))
        return await result

    async def deliver(self, order: Order) -> Delivery:
        """Handle one message. Raises Undelivered, MeshError."""
        order.wait_until = time.monotonic() + order.max_wait_ms / 1000
        while True:
            verdict, turn = await self._ask()
            paid_access = not isinstance(verdict, Granted) and await order.has_paid_access()
            match next_step(verdict, order.wait_left_ms, paid_access=paid_access, refused=order.refused):
                case SendFree(reservation):
                    try:
                        delivery = await self._try_free(order, reservation, turn.pass_on)
                    finally:
                        turn.pass_on()
                    if delivery is not None:
                        return delivery
                case Wait(ms):
                    await self._sleep(ms / 1000)
                case Pay(reason):
                    if not await self._has_second_thoughts(order, verdict, reason):
                        return await self._pay(order, reason)
                case Refuse(ms):
                    raise Undelivered(
                        403,
                        "the free provider is closed, and the paid one is not for this user",
                        reason="no-paid-access",
                        retry_after_ms=ms,
                    )

    # asking

    async def _ask(self) -> tuple[Verdict, Turn]:
        """The allowance's word, with the turn where it is yes. While another request probes for all, wait for what
        comes of it."""
        until, turn = asyncio.get_running_loop().time() + self.settings.probe_wait_ms / 1000, Turn(self._line)
        if not await turn.take(until):
            return Probing(await self.quota.look()), turn
        verdict: Verdict | None = None
        try:
            verdict = await self.quota.reserve()
            while isinstance(verdict, Probing) and asyncio.get_running_loop().time() < until:
                await self._sleep(ASK_AGAIN_S)
                verdict = await self.quota.reserve()
            return verdict, turn
        finally:
            if not isinstance(verdict, Granted) or not self._free_in_reach:
                turn.pass_on()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not when the replica leaves."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return
        raise Undelivered(503, "this replica is about to leave", reason="leaving", retry_after_ms=PROBE_MS)

    # free

    async def _try_free(self, order: Order, reservation: Reservation, has_left: Callable[[], None]) -> Delivery | None:
        """None: it is not there, and the allowance must be asked again. Raises Undelivered, MeshError."""
        try:
            await self._begin_sending(order)
        except (MeshError, Undelivered):
            await self._settle(self.quota.unsent, reservation)
            raise
        outcome = await self._send("free", self.free, order, reservation.may_send, has_left)
        self._free_in_reach = not isinstance(outcome, Unsent) or outcome.detail == TOO_LATE
        match outcome:
            case Answered(response):
                await self._settle(self.quota.used, reservation)
                return self._delivered("free", "open", response)
            case Blocked(retry_ms):
                log.warning("the free provider refused in spite of our count", retry_after_ms=retry_ms)
                order.refused = True
                if not await self._settle(lambda held: self.quota.refused(held, retry_ms), reservation):
                    raise Unavailable("the shared allowance cannot be used: Redis failed; try again")
                return None
            case Unsent(detail):
                await self._settle(self.quota.unsent, reservation)
                # This process was held up, not the provider: its turn is over, it may have another.
                return None if detail == TOO_LATE else await self._instead(order, "unreachable", detail)
            case Failed(detail):
                await self._settle(self.quota.uncertain, reservation)
                return await self._instead(order, "failed", detail)
            case Unknown(detail):
                await self._settle(self.quota.uncertain, reservation)
                raise _unknown("free", detail)
        raise AssertionError("every outcome has its case")

    async def _instead(self, order: Order, reason: Reason, detail: str) -> Delivery:
        """The free provider is out of order, and provably has not handled the message."""
        if await order.has_paid_access():
            return await self._pay(order, reason)
        raise Undelivered(502, f"the free provider cannot be used ({detail})", reason=reason)

    async def _settle(self, note: Callable[[Reservation], Awaitable[Allowance]], reservation: Reservation) -> bool:
        for tries in range(1, SETTLE_TRIES + 1):
            try:
                await note(reservation)
                return True
            except MeshError as error:
                log.warning("the outcome of a free request could not be noted", error=str(error), tries=tries)
                await asyncio.sleep(0.1 * tries)
        return False

    # paid

    async def _has_second_thoughts(self, order: Order, verdict: Verdict, reason: Reason) -> bool:
        """Whether free opened since it was asked; then it is asked again. The last look before paying."""
        allowance = await self.quota.look()
        if allowance.remaining == 0:
            # Money is spent on this moment's word, so it stays on record: by Redis's clock.
            log.info("a message is paid for", message_id=order.id, reason=reason, looked_ms=allowance.now_ms)
            return False
        if isinstance(verdict, Closed) and order.second_thoughts > 0:
            order.second_thoughts -= 1
            return True
        log.warning("paying although the free provider may be open", reason=reason, caution=allowance.caution)
        self.metrics.paid_avoidable.inc()
        return False

    async def _pay(self, order: Order, reason: Reason) -> Delivery:
        await self._begin_sending(order)
        match await self._send("paid", self.paid, order):
            case Answered(response):
                return self._delivered("paid", reason, response)
            case Blocked(retry_ms):
                raise Undelivered(
                    503,
                    "both providers are closed",
                    reason="paid-blocked",
                    retry_after_ms=retry_ms or PROBE_MS,
                )
            case Unsent(detail):
                raise Undelivered(502, f"no provider can be reached ({detail})", reason="unreachable")
            case Failed(detail):
                raise Undelivered(502, f"the paid provider failed ({detail})", reason="failed")
            case Unknown(detail):
                raise _unknown("paid", detail)
        raise AssertionError("every outcome has its case")

    # both

    async def _begin_sending(self, order: Order) -> None:
        if not await order.begin_sending():
            raise Undelivered(
                503,
                "this message was taken over; ask again with its key",
                reason="taken-over",
                retry_after_ms=PROBE_MS,
            )

    async def _send(
        self,
        name: str,
        gateway: Gateway,
        order: Order,
        may_leave: Callable[[], bool] = lambda: True,
        has_left: Callable[[], None] = lambda: None,
    ) -> Outcome:
        began = time.perf_counter()
        outcome = await gateway.send(order.id, order.message, may_leave, has_left)
        self.metrics.note(name, outcome, time.perf_counter() - began)
        order.arrived = order.arrived or isinstance(outcome, Answered | Failed | Unknown)
        return outcome

    def _delivered(self, provider: Literal["free", "paid"], reason: str, response: str) -> Delivery:
        self.metrics.delivered.labels(provider, reason).inc()
        return Delivery(provider, response)

    async def _work(
        self, work: Callable[[], Awaitable[Delivery]], bound_s: float, result: asyncio.Future[Delivery]
    ) -> None:
        """Never raises: one message's end must not be the end of the others."""
        self.metrics.in_flight.inc()
        try:
            async with asyncio.timeout(bound_s):
                delivery = await work()
            if not result.done():
                result.set_result(delivery)
        except TimeoutError:
            self._fail(result, Undelivered(504, "not done in time", reason="deadline"))
        except Exception as error:
            self._fail(result, error)
        finally:
            self._fail(result, Unavailable("this replica has lost its place in the mesh"))
            self._in_flight -= 1
            self.metrics.in_flight.dec()

    def _fail(self, result: asyncio.Future[Delivery], error: Exception) -> None:
        if result.done():
            return
        if isinstance(error, Undelivered):
            self.metrics.undelivered.labels(error.reason).inc()
        result.set_exception(error)


def _unknown(provider: str, detail: str) -> Undelivered:
    return Undelivered(
        502,
        f"the {provider} provider did not answer ({detail}); whether it has the message is not known",
        reason="unknown",
    )
