"""Deliveries between two scripted providers, over a fake Redis: paying only while the free one is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from mesh.errors import Unavailable
from mesh.quota.quota import Granted, Quota
from mesh.testing.fake_server import FakeClient
from quart_app.messages.delivery import Delivery, OutgoingMessage, ProviderReply, Undelivered
from quart_app.messages.idempotency import ClaimWithoutKey
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.provider import TOO_LATE, Answered, Blocked, Failed, ProviderOutcome, Unknown, Unsent
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import Users

LIMIT, BLOCK_MS = 2, 200


class Scripted:
    """A provider with given outcomes; it repeats the last one."""

    def __init__(self, *outcomes: ProviderOutcome, latency_s: float = 0.0, reach_s: float = 0.0) -> None:
        self._outcomes = list(outcomes) or [Answered("done")]
        self._latency_s, self._reach_s = latency_s, reach_s
        self.sent: list[str] = []
        #: requests that have a slot and have not left yet: now, and at most
        self.leaving = self.most_leaving = 0
        #: requests that have left and have no answer yet
        self.unanswered = self.most_unanswered = 0

    async def send(
        self,
        message_id: str,
        text: str,
        may_send: Callable[[], bool] = lambda: True,
        pass_turn_on: Callable[[], None] = lambda: None,
    ) -> ProviderOutcome:
        self.sent.append(text)
        self.leaving += 1
        self.most_leaving = max(self.most_leaving, self.leaving)
        await asyncio.sleep(self._reach_s)
        self.leaving -= 1
        pass_turn_on()
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        await asyncio.sleep(self._latency_s)
        self.unanswered -= 1
        return self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]

    async def close(self) -> None:
        return None


class LostClaim(ClaimWithoutKey):
    """A claim that another request has taken over."""

    async def begin_sending(self) -> bool:
        return False


class Scene:
    """A delivery between two scripted providers."""

    def __init__(self, free: Scripted, paid: Scripted, **settings: Any) -> None:
        self.free, self.paid = free, paid
        self.registry = CollectorRegistry()
        redis = FakeClient(decode_responses=True)
        self.users = Users(redis)
        self.quota = Quota(FakeClient(), "shared:q", limit=LIMIT, block_ms=BLOCK_MS, hold_ms=2_000)
        chosen = MessageSettings(**{"probe_wait_ms": 500} | settings)
        providers: Any = (free, paid)
        self.delivery = Delivery(self.quota, *providers, self.users, MessageMetrics(self.registry), chosen)
        self._redis = redis

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def send(self, text: str = "m", *, paid: bool = True, wait_ms: int = 0, mine: bool = True) -> ProviderReply:
        """Deliver a message of a user with or without paid access."""
        fields = {"paid_access": str(int(paid)), "is_active": "1", "is_admin": "0", "generation": "1"}
        fields |= {"id": f"user-{paid}", "email": "", "password": ""}
        await self._redis.hset(f"shared:messages:user:user-{paid}", mapping=fields)
        self.message = OutgoingMessage("id", f"user-{paid}", text, time.monotonic() + wait_ms / 1000)
        return await self.delivery.deliver(self.message, ClaimWithoutKey() if mine else LostClaim())

    @property
    def may_have_arrived(self) -> bool:
        """Whether the last message is, or may be, at a provider."""
        return self.message.may_have_arrived

    async def use_up(self) -> None:
        """Use all slots of the free provider."""
        for _ in range(LIMIT):
            verdict = await self.quota.reserve()
            assert isinstance(verdict, Granted)
            await self.quota.used(verdict.reservation)


@asynccontextmanager
async def scene(free: Scripted | None = None, paid: Scripted | None = None, **settings: Any) -> AsyncIterator[Scene]:
    yield Scene(free or Scripted(), paid or Scripted(), **settings)


async def test_free_first_then_paid_then_free_again() -> None:
    """The messages fill a whole window of the free provider."""
    async with scene() as it:
        used = [(await it.send()).provider for _ in range(LIMIT + 2)]
        assert used == ["free"] * LIMIT + ["paid"] * 2
        await asyncio.sleep(BLOCK_MS / 1000)
        assert (await it.send()).provider == "free"
        assert it.metric("mesh_messages_delivered_total", provider="paid", reason="closed") == 2
        assert it.metric("mesh_messages_paid_avoidable_total") == 0


async def test_closed_without_paid_access_says_until_when() -> None:
    """403 with Retry-After, and neither provider gets the message."""
    async with scene() as it:
        await it.use_up()
        with pytest.raises(Undelivered) as refused:
            await it.send(paid=False)
        assert refused.value.status == 403
        assert not it.may_have_arrived
        assert refused.value.retry_after is not None and 0 < refused.value.retry_after <= BLOCK_MS / 1000
        assert it.free.sent == it.paid.sent == []


async def test_a_message_waits_for_free_rather_than_pay() -> None:
    """A message waits if free opens within `max_wait_ms`."""
    async with scene() as it:
        await it.use_up()
        assert (await it.send(wait_ms=5_000)).provider == "free"
        assert it.paid.sent == []


async def test_a_wait_that_is_too_short_is_not_begun() -> None:
    """The message is paid for at once."""
    async with scene() as it:
        await it.use_up()
        began = asyncio.get_running_loop().time()
        assert (await it.send(wait_ms=10)).provider == "paid"
        assert asyncio.get_running_loop().time() - began < 0.05


async def test_a_refusal_of_a_counted_request_closes_the_allowance() -> None:
    """The allowance closes for all replicas at once; the refused message is paid for."""
    async with scene(Scripted(Blocked(1_000), Answered("done"))) as it:
        assert (await it.send("first")).provider == "paid"
        assert (await it.send("second")).provider == "paid"
        assert it.free.sent == ["first"]
        assert it.metric("mesh_messages_delivered_total", provider="paid", reason="refused") == 1
        assert it.metric("mesh_messages_delivered_total", provider="paid", reason="closed") == 1
        assert it.metric("mesh_messages_paid_avoidable_total") == 0


async def test_messages_wait_for_a_probe_rather_than_pay() -> None:
    """At the first start the count of the provider is not known."""
    async with scene(Scripted(latency_s=0.1)) as it:
        used = await asyncio.gather(*(it.send(f"m{n}") for n in range(LIMIT + 3)))
        assert sorted(each.provider for each in used) == ["free"] * LIMIT + ["paid"] * 3
        assert it.metric("mesh_messages_delivered_total", provider="paid", reason="closed") == 3


async def test_a_probe_that_takes_too_long_is_not_waited_for() -> None:
    """The message is paid for, and counted as perhaps avoidable."""
    async with scene(Scripted(latency_s=0.5), probe_wait_ms=50) as it:
        first = asyncio.create_task(it.send("first"))
        await asyncio.sleep(0.02)
        assert (await it.send("second")).provider == "paid"
        assert (await first).provider == "free"
        assert it.metric("mesh_messages_paid_avoidable_total") == 1


async def test_free_is_used_if_it_opens_right_before_paying() -> None:
    """The last look before paying sees it."""
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
async def test_free_out_of_order_is_replaced_by_paid(outcome: ProviderOutcome, slots_left: int, reason: str) -> None:
    """The slot is free again only if nothing left."""
    async with scene(Scripted(outcome)) as it:
        assert (await it.send()).provider == "paid"
        assert (await it.quota.look()).remaining == slots_left
        assert it.metric("mesh_messages_delivered_total", provider="paid", reason=reason) == 1
        assert it.metric("mesh_messages_paid_avoidable_total") == 0


@pytest.mark.parametrize(("outcome", "arrived"), [(Unsent("refused"), False), (Failed("500"), True)])
async def test_free_out_of_order_without_paid_access(outcome: ProviderOutcome, arrived: bool) -> None:
    """502; the answer is kept for the key only if the provider saw the message."""
    async with scene(Scripted(outcome)) as it:
        with pytest.raises(Undelivered) as failed:
            await it.send(paid=False)
        assert (failed.value.status, it.may_have_arrived) == (502, arrived)


async def test_what_may_be_at_free_is_not_sent_to_paid() -> None:
    """If free does not answer, the paid provider could handle the message a second time."""
    async with scene(Scripted(Unknown("timeout"))) as it:
        with pytest.raises(Undelivered) as failed:
            await it.send()
        assert (failed.value.status, it.may_have_arrived) == (502, True)
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
async def test_paid_out_of_order(outcome: ProviderOutcome, status: int, arrived: bool) -> None:
    """The answer is kept if the provider may have the message, so that a key never pays twice."""
    async with scene(paid=Scripted(outcome)) as it:
        await it.use_up()
        with pytest.raises(Undelivered) as failed:
            await it.send()
        assert (failed.value.status, it.may_have_arrived) == (status, arrived)
        assert it.paid.sent == ["m"]


async def test_a_message_that_free_has_seen_has_arrived_though_paid_is_away() -> None:
    """The last outcome is "unreachable", but the same key must not reach free again."""
    async with scene(Scripted(Failed("500")), Scripted(Unsent("refused"))) as it:
        with pytest.raises(Undelivered):
            await it.send()
        assert it.may_have_arrived


async def test_a_process_that_was_held_up_reserves_again() -> None:
    """The old slot is free again, and free gets the message in another one."""
    async with scene(Scripted(Unsent(TOO_LATE), Answered("done"))) as it:
        assert (await it.send()).provider == "free"
        assert (await it.quota.look()).remaining == LIMIT - 1


async def test_a_claim_that_was_taken_over_sends_nothing() -> None:
    """The slot of the message is free again."""
    async with scene() as it:
        with pytest.raises(Undelivered):
            await it.send(mine=False)
        assert it.free.sent == it.paid.sent == []
        assert (await it.quota.look()).remaining == LIMIT


async def test_one_slot_at_most_waits_for_its_request_to_leave() -> None:
    """A killed replica loses one slot at most; the answers are waited for together."""
    free = Scripted(reach_s=0.02, latency_s=0.2)
    async with scene(free) as it:
        it.quota = it.delivery.quota = Quota(FakeClient(), "shared:q", limit=6, block_ms=BLOCK_MS)
        await it.send("tells that free is open")
        await asyncio.gather(*(it.send(f"m{n}") for n in range(5)))
    assert (free.most_leaving, free.most_unanswered) == (1, 5)


async def test_messages_do_not_wait_for_each_others_tries_of_an_unreachable_provider() -> None:
    """The first message finds out; the next ones try at the same time."""
    async with scene(Scripted(Unsent("timeout"), reach_s=0.2)) as it:
        await it.send("finds out")
        await it.quota.redis.hset("shared:q:allowance", "caution", 0)
        began = asyncio.get_running_loop().time()
        used = await asyncio.gather(*(it.send(f"m{n}") for n in range(LIMIT)))
        assert asyncio.get_running_loop().time() - began < 0.35
        assert [each.provider for each in used] == ["paid"] * LIMIT


async def test_a_payment_is_on_record_with_the_moment_of_the_last_look() -> None:
    """The time is that of Redis, so it can be compared with the record of the allowance."""
    async with scene() as it:
        await it.use_up()
        with structlog.testing.capture_logs() as said:
            await it.send()
        (paid,) = [each for each in said if each["event"] == "a message is paid for"]
        assert (paid["message_id"], paid["reason"]) == ("id", "closed")
        assert abs(paid["looked_ms"] / 1000 - time.time()) < 5


async def test_redis_away_is_no_reason_to_pay() -> None:
    """Without Redis nobody knows whether free is open."""
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
