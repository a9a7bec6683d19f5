"""Paying only while free is closed, whatever the providers do; over a fake Redis, with scripted providers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from fakeredis import FakeAsyncRedis
from prometheus_client import CollectorRegistry

from mesh.errors import Unavailable
from mesh.quota.quota import Granted, Quota
from quart_app.http.problems import Problem
from quart_app.messages.delivery import Delivery, Dispatcher, NotAdmitted, Order, Undelivered
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.provider import TOO_LATE, Answered, Blocked, Failed, Outcome, Unknown, Unsent
from quart_app.messages.settings import MessageSettings

LIMIT, BLOCK_MS = 2, 80


class Scripted:
    """A provider that answers what the test says, then the last of it for ever."""

    def __init__(self, *outcomes: Outcome, latency_s: float = 0.0, reach_s: float = 0.0) -> None:
        self._outcomes = list(outcomes) or [Answered("done")]
        self._latency_s, self._reach_s = latency_s, reach_s
        self.sent: list[str] = []
        #: reserved and not on their way yet, and the most there ever were
        self.leaving = self.most_leaving = 0
        #: on their way and not answered yet
        self.unanswered = self.most_unanswered = 0

    async def send(
        self,
        message_id: str,
        message: str,
        may_leave: Callable[[], bool] = lambda: True,
        has_left: Callable[[], None] = lambda: None,
    ) -> Outcome:
        self.sent.append(message)
        self.leaving += 1
        self.most_leaving = max(self.most_leaving, self.leaving)
        await asyncio.sleep(self._reach_s)
        self.leaving -= 1
        has_left()
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        await asyncio.sleep(self._latency_s)
        self.unanswered -= 1
        return self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]

    async def close(self) -> None:
        return None


class Scene:
    """A dispatcher between two scripted providers."""

    def __init__(self, free: Scripted, paid: Scripted, **settings: Any) -> None:
        self.free, self.paid = free, paid
        self.registry = CollectorRegistry()
        self.quota = Quota(FakeAsyncRedis(), "shared:q", limit=LIMIT, block_ms=BLOCK_MS, hold_ms=2_000)
        chosen = MessageSettings(**{"probe_wait_ms": 500} | settings)
        gateways: Any = (free, paid)
        self.dispatcher = Dispatcher(self.quota, *gateways, MessageMetrics(self.registry), chosen)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def send(self, message: str = "m", *, paid: bool = True, wait_ms: int = 0, mine: bool = True) -> Delivery:
        async def has_paid_access() -> bool:
            return paid

        async def begin_sending() -> bool:
            return mine

        self.order = Order("id", message, wait_ms, has_paid_access, begin_sending)
        order = self.order
        return await self.dispatcher.run(lambda: self.dispatcher.deliver(order), wait_ms)

    @property
    def arrived(self) -> bool:
        """Whether the last message is, or may be, at a provider."""
        return self.order.arrived

    async def use_up(self) -> None:
        for _ in range(LIMIT):
            verdict = await self.quota.reserve()
            assert isinstance(verdict, Granted)
            await self.quota.used(verdict.reservation)


@asynccontextmanager
async def scene(free: Scripted | None = None, paid: Scripted | None = None, **settings: Any) -> AsyncIterator[Scene]:
    made = Scene(free or Scripted(), paid or Scripted(), **settings)
    async with made.dispatcher.open():
        yield made


async def test_free_first_then_paid_then_free_again() -> None:
    """The window's whole course."""
    async with scene() as it:
        used = [(await it.send()).provider for _ in range(LIMIT + 2)]
        assert used == ["free"] * LIMIT + ["paid"] * 2
        await asyncio.sleep(BLOCK_MS / 1000)
        assert (await it.send()).provider == "free"
        assert it.metric("messages_delivered_total", provider="paid", reason="closed") == 2
        assert it.metric("paid_avoidable_total") == 0


async def test_closed_without_paid_access_says_until_when() -> None:
    """403, and nothing was sent anywhere."""
    async with scene() as it:
        await it.use_up()
        with pytest.raises(Undelivered) as refused:
            await it.send(paid=False)
        assert refused.value.status == 403
        assert not it.arrived
        assert refused.value.retry_after is not None and 0 < refused.value.retry_after <= BLOCK_MS / 1000
        assert it.free.sent == it.paid.sent == []


async def test_waiting_is_cheaper_than_paying() -> None:
    """Within the wait that was asked for."""
    async with scene() as it:
        await it.use_up()
        assert (await it.send(wait_ms=5_000)).provider == "free"
        assert it.paid.sent == []


async def test_a_wait_too_short_is_not_begun() -> None:
    """Whoever cannot wait long enough need not wait at all."""
    async with scene() as it:
        await it.use_up()
        began = asyncio.get_running_loop().time()
        assert (await it.send(wait_ms=10)).provider == "paid"
        assert asyncio.get_running_loop().time() - began < 0.05


async def test_a_refusal_in_spite_of_the_count_closes_and_that_message_is_paid() -> None:
    """For everybody at once; afterwards one goes first."""
    async with scene(Scripted(Blocked(1_000), Answered("done"))) as it:
        assert (await it.send("first")).provider == "paid"
        assert (await it.send("second")).provider == "paid"
        assert it.free.sent == ["first"]
        assert it.metric("messages_delivered_total", provider="paid", reason="refused") == 1
        assert it.metric("messages_delivered_total", provider="paid", reason="closed") == 1
        assert it.metric("paid_avoidable_total") == 0


async def test_while_one_probes_the_others_wait_rather_than_pay() -> None:
    """At the very start, and after every learned block."""
    async with scene(Scripted(latency_s=0.1)) as it:
        used = await asyncio.gather(*(it.send(f"m{n}") for n in range(LIMIT + 3)))
        assert sorted(each.provider for each in used) == ["free"] * LIMIT + ["paid"] * 3
        assert it.metric("messages_delivered_total", provider="paid", reason="closed") == 3


async def test_a_probe_that_takes_too_long_is_not_waited_for() -> None:
    """Then it is paid, and counted as what it is: perhaps avoidable."""
    async with scene(Scripted(latency_s=0.5), probe_wait_ms=50) as it:
        first = asyncio.create_task(it.send("first"))
        await asyncio.sleep(0.02)
        assert (await it.send("second")).provider == "paid"
        assert (await first).provider == "free"
        assert it.metric("paid_avoidable_total") == 1


async def test_free_that_opened_right_before_paying_is_taken() -> None:
    """The last look before paying."""
    async with scene() as it:
        await it.use_up()
        reserve = it.quota.reserve

        async def reserve_late() -> Any:
            verdict = await reserve()
            await asyncio.sleep(BLOCK_MS / 1000 * 1.2)
            return verdict

        patched = pytest.MonkeyPatch()
        patched.setattr(type(it.quota), "reserve", lambda _: reserve_late())
        try:
            assert (await it.send()).provider == "free"
        finally:
            patched.undo()
        assert it.paid.sent == []


@pytest.mark.parametrize(
    ("outcome", "slots_left", "reason"),
    [(Unsent("refused"), LIMIT, "unreachable"), (Failed("500"), LIMIT - 1, "failed")],
)
async def test_free_out_of_order_is_replaced_by_paid(outcome: Outcome, slots_left: int, reason: str) -> None:
    """A slot comes back only if nothing left."""
    async with scene(Scripted(outcome)) as it:
        assert (await it.send()).provider == "paid"
        assert (await it.quota.look()).remaining == slots_left
        assert it.metric("messages_delivered_total", provider="paid", reason=reason) == 1
        assert it.metric("paid_avoidable_total") == 0


@pytest.mark.parametrize(("outcome", "arrived"), [(Unsent("refused"), False), (Failed("500"), True)])
async def test_free_out_of_order_without_paid_access(outcome: Outcome, arrived: bool) -> None:
    """502; to be remembered only if the message was seen."""
    async with scene(Scripted(outcome)) as it:
        with pytest.raises(Undelivered) as failed:
            await it.send(paid=False)
        assert (failed.value.status, it.arrived) == (502, arrived)


async def test_what_may_be_at_free_is_not_sent_to_paid() -> None:
    """Nobody knows whether free has it; sending it once more could handle it twice."""
    async with scene(Scripted(Unknown("timeout"))) as it:
        with pytest.raises(Undelivered) as failed:
            await it.send()
        assert (failed.value.status, it.arrived) == (502, True)
        assert it.paid.sent == []
        assert (await it.quota.look()).remaining == LIMIT - 1


@pytest.mark.parametrize(
    ("outcome", "status", "arrived"),
    [
        (Blocked(3_000), 503, False),
        (Unsent("refused"), 502, False),
        (Failed("500"), 502, True),
        (Unknown("timeout"), 502, True),
    ],
)
async def test_paid_out_of_order(outcome: Outcome, status: int, arrived: bool) -> None:
    """To be remembered wherever the message may have been taken: a key must never pay twice."""
    async with scene(paid=Scripted(outcome)) as it:
        await it.use_up()
        with pytest.raises(Undelivered) as failed:
            await it.send()
        assert (failed.value.status, it.arrived) == (status, arrived)
        assert it.paid.sent == ["m"]


async def test_what_free_has_seen_stays_seen_though_paid_is_away() -> None:
    """The last outcome is "unreachable", and yet the same key must not reach free again."""
    async with scene(Scripted(Failed("500")), Scripted(Unsent("refused"))) as it:
        with pytest.raises(Undelivered):
            await it.send()
        assert it.arrived


async def test_who_was_held_up_asks_again() -> None:
    """It was this process, not the provider: the slot goes back, and free is asked for another."""
    async with scene(Scripted(Unsent(TOO_LATE), Answered("done"))) as it:
        assert (await it.send()).provider == "free"
        assert (await it.quota.look()).remaining == LIMIT - 1


async def test_who_was_taken_over_sends_nothing() -> None:
    """And its slot goes back."""
    async with scene() as it:
        with pytest.raises(Undelivered):
            await it.send(mine=False)
        assert it.free.sent == it.paid.sent == []
        assert (await it.quota.look()).remaining == LIMIT


async def test_one_slot_at_most_waits_for_its_request_to_leave() -> None:
    """So one is all that a killed replica takes along; and the answers are waited for together."""
    free = Scripted(reach_s=0.02, latency_s=0.2)
    async with scene(free) as it:
        it.quota = it.dispatcher.quota = Quota(FakeAsyncRedis(), "shared:q", limit=6, block_ms=BLOCK_MS)
        await it.send("tells that free is open")
        await asyncio.gather(*(it.send(f"m{n}") for n in range(5)))
    assert (free.most_leaving, free.most_unanswered) == (1, 5)


async def test_nobody_waits_in_line_for_a_provider_that_is_away() -> None:
    """One message finds out; the others need not wait until it has tried long enough, each in turn."""
    async with scene(Scripted(Unsent("timeout"), reach_s=0.2)) as it:
        await it.send("finds out")
        await it.quota.redis.hset("shared:q:allowance", "caution", 0)
        began = asyncio.get_running_loop().time()
        used = await asyncio.gather(*(it.send(f"m{n}") for n in range(LIMIT)))
        assert asyncio.get_running_loop().time() - began < 0.35
        assert [each.provider for each in used] == ["paid"] * LIMIT


async def test_a_payment_is_on_record_with_the_moment_of_the_last_look() -> None:
    """By Redis's clock, so that it can be held against what the allowance was then."""
    async with scene() as it:
        await it.use_up()
        with structlog.testing.capture_logs() as said:
            await it.send()
        (paid,) = [each for each in said if each["event"] == "a message is paid for"]
        assert (paid["message_id"], paid["reason"]) == ("id", "closed")
        assert abs(paid["looked_ms"] / 1000 - time.time()) < 5


async def test_who_hangs_up_leaves_no_slot_behind() -> None:
    """The work goes on in a task of its own, and notes its outcome."""
    async with scene(Scripted(latency_s=0.1)) as it:
        sending = asyncio.create_task(it.send())
        await asyncio.sleep(0.02)
        sending.cancel()
        await asyncio.wait([sending])
    assert it.free.sent == ["m"]
    look = await it.quota.look()
    assert (look.remaining, look.caution) == (LIMIT - 1, 0)


async def test_more_than_may_be_in_flight_are_not_begun() -> None:
    """A bound, and an answer at once."""
    async with scene(Scripted(latency_s=0.1), max_in_flight=2) as it:
        answers = await asyncio.gather(*(it.send() for _ in range(5)), return_exceptions=True)
        refused = [each for each in answers if isinstance(each, NotAdmitted)]
        assert len(refused) == 3 and refused[0].status == 503


async def test_leaving_wakes_those_who_wait_and_finishes_those_who_send() -> None:
    """Nobody sleeps through the end; nothing new is begun after it."""
    async with scene(Scripted(latency_s=0.1)) as it:
        sending = asyncio.create_task(it.send("sent"))
        await asyncio.sleep(0.02)
        await it.quota.refused(await _any_reservation(it), 60_000)
        waiting = asyncio.create_task(it.send("waits", wait_ms=300_000, paid=False))
        await asyncio.sleep(0.05)
    assert (await sending).provider == "free"
    with pytest.raises(Undelivered, match="about to leave"):
        await waiting
    with pytest.raises(NotAdmitted):
        await it.send()


async def _any_reservation(it: Scene) -> Any:
    from mesh.quota.quota import Reservation

    return Reservation("another's", 0.0)


async def test_redis_away_is_no_reason_to_pay() -> None:
    """Without the allowance nobody knows whether free is open."""
    async with scene() as it:

        async def away() -> Any:
            raise Unavailable("the shared allowance cannot be used: Redis failed; try again")

        patched = pytest.MonkeyPatch()
        patched.setattr(type(it.quota), "reserve", lambda _: away())
        try:
            with pytest.raises(Unavailable):
                await it.send()
        finally:
            patched.undo()
        assert it.paid.sent == []


async def test_a_message_without_end_is_ended() -> None:
    """504 at the bound, and the others go on."""
    async with scene(Scripted(latency_s=5)) as it:

        async def endless() -> Delivery:
            await asyncio.sleep(3600)
            raise AssertionError

        it.dispatcher.settings = it.dispatcher.settings.model_copy(
            update={"probe_wait_ms": 0, "connect_tries": 1, "connect_timeout_ms": 10, "provider_timeout_ms": 10}
        )
        began = asyncio.get_running_loop().time()
        ending = asyncio.create_task(it.dispatcher.run(endless, -it.dispatcher.settings.work_ms + 50))
        with pytest.raises(Problem) as ended:
            await ending
        assert ended.value.status == 504
        assert asyncio.get_running_loop().time() - began < 2
