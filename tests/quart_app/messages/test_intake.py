"""The intake: a bound on messages in progress, tasks that outlive their clients, and idempotency keys around both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from mesh.errors import LeaseLost
from mesh.testing.fake_server import FakeClient
from quart_app.http.problems import Problem
from quart_app.messages.delivery import Delivery, OutgoingMessage, ProviderReply, Undelivered
from quart_app.messages.idempotency import IdempotencyKeys, KeyClaim
from quart_app.messages.intake import MessageIntake, NotAdmitted, Receipt
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.models import NewMessage
from quart_app.messages.settings import MessageSettings

Step = Callable[[OutgoingMessage, KeyClaim], Awaitable[ProviderReply]]


@dataclass
class Scene:
    """An intake whose deliveries do what the test says."""

    redis: Redis = field(default_factory=lambda: FakeClient(decode_responses=True))
    settings: MessageSettings = field(default_factory=MessageSettings)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    delivered: list[str] = field(default_factory=list)
    patch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)

    def __post_init__(self) -> None:
        nothing: Any = Closing()
        users: Any = None
        metrics = MessageMetrics(self.registry)
        self.delivery = Delivery(nothing, nothing, nothing, users, metrics, self.settings)
        keys = IdempotencyKeys(self.redis, work_ms=self.settings.work_ms, keep_ms=60_000)
        self.intake = MessageIntake(keys, self.delivery)

    def step(self, step: Step) -> None:
        """Let every delivery do this."""

        async def deliver(_: Delivery, message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
            self.delivered.append(message.text)
            return await step(message, claim)

        self.patch.setattr(Delivery, "deliver", deliver)

    async def send(self, text: str = "m", key: str | None = None, wait_ms: int = 0) -> Receipt:
        return await self.intake.handle("user", NewMessage(message=text, max_wait_ms=wait_ms), key)

    async def begun(self) -> None:
        """Wait until a delivery has begun."""
        async with asyncio.timeout(10):
            while not self.delivered:
                await asyncio.sleep(0.001)


class Closing:
    """A client of a provider that is only closed."""

    async def close(self) -> None:
        return None


@asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[Scene]:
    made = Scene(settings=MessageSettings(**settings))
    made.step(reply)
    try:
        async with made.intake.open():
            yield made
    finally:
        made.patch.undo()


async def reply(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
    """A delivery that works."""
    assert await claim.begin_sending()
    message.may_have_arrived = True
    return ProviderReply("free", f"reply to {message.text}")


async def test_a_message_is_delivered_and_its_key_answered_again() -> None:
    """The second answer has the same id; the provider gets the message once."""
    async with scene() as it:
        first = await it.send(key="k")
        assert await it.send(key="k") == first
        assert (first.response, it.delivered) == ("reply to m", ["m"])
        with pytest.raises(Problem) as reused:
            await it.send("other", key="k")
        assert reused.value.status == 409


async def test_a_client_that_hangs_up_does_not_stop_the_delivery() -> None:
    """The answer is kept for the key."""
    going_on = asyncio.Event()

    async def slow(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        await going_on.wait()
        return await reply(message, claim)

    async with scene() as it:
        it.step(slow)
        sending = asyncio.create_task(it.send(key="k"))
        await it.begun()
        sending.cancel()
        await asyncio.wait([sending])
        going_on.set()
        assert (await it.send(key="k")).response == "reply to m"
        assert it.delivered == ["m"]


async def test_a_second_request_with_the_key_waits_for_the_first() -> None:
    """Both get the same answer."""

    async def slow(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        await asyncio.sleep(0.1)
        return await reply(message, claim)

    async with scene() as it:
        it.step(slow)
        one, two = await asyncio.gather(it.send(key="k"), it.send(key="k"))
        assert one == two and it.delivered == ["m"]


@pytest.mark.parametrize("arrived", [False, True])
async def test_a_failure_is_kept_only_if_a_provider_may_have_the_message(arrived: bool) -> None:
    """The key is free again if no provider can have the message."""

    async def fail(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        assert await claim.begin_sending()
        message.may_have_arrived = arrived
        raise Undelivered(502, "no answer", metrics_label="unknown")

    async with scene() as it:
        it.step(fail)
        for _ in range(2):
            with pytest.raises(Problem, match="no answer"):
                await it.send(key="k")
        assert it.delivered == ["m"] * (1 if arrived else 2)
        assert it.registry.get_sample_value("mesh_messages_undelivered_total", {"reason": "unknown"}) == len(
            it.delivered
        )


@pytest.mark.parametrize("began", [False, True])
async def test_an_unexpected_error_leaves_the_claim_as_it_is(began: bool) -> None:
    """A message that may have been sent is not sent again; later requests get an honest error."""

    async def break_down(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        if began:
            await claim.begin_sending()
        raise RuntimeError("unexpected")

    async with scene() as it:
        it.step(break_down)
        with pytest.raises(RuntimeError):
            await it.send(key="k")
        (name,) = await it.redis.keys("shared:messages:claim:*")
        assert await it.redis.hget(name, "state") == ("sending" if began else "claimed")
        await it.redis.hset(name, "until_ms", "0")
        it.step(reply)
        if began:
            with pytest.raises(Problem, match="is not known"):
                await it.send(key="k")
        else:
            assert (await it.send(key="k")).response == "reply to m"


async def test_messages_in_progress_are_bounded() -> None:
    """503 at once, and the key of a refused message is free."""

    async def slow(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        await asyncio.sleep(0.1)
        return await reply(message, claim)

    async with scene(max_in_flight=2) as it:
        it.step(slow)
        answers = await asyncio.gather(*(it.send(key=f"k{n}") for n in range(5)), return_exceptions=True)
        refused = [each for each in answers if isinstance(each, NotAdmitted)]
        assert (len(refused), refused[0].status, refused[0].retry_after) == (3, 503, 1)
        assert len(await it.redis.keys("shared:messages:claim:*")) == 2


async def test_leaving_finishes_what_was_begun_and_begins_nothing() -> None:
    """A message that waits for the free provider is told so."""

    async def slow(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        await asyncio.sleep(0.1)
        return await reply(message, claim)

    async with scene() as it:
        it.step(slow)
        sending = asyncio.create_task(it.send(key="k"))
        await it.begun()
    assert (await sending).response == "reply to m"
    with pytest.raises(NotAdmitted, match="leaving"):
        await it.send()


async def test_a_message_that_waits_does_not_sleep_through_the_end() -> None:
    """The wait for the free provider ends when the replica leaves."""

    async def wait(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        await it.delivery._sleep_unless_leaving(3600)
        raise AssertionError

    async with scene() as it:
        it.step(wait)
        waiting = asyncio.create_task(it.send(wait_ms=30_000))
        await it.begun()
    with pytest.raises(Undelivered, match="leaving"):
        await waiting


async def test_a_delivery_has_a_bound() -> None:
    """504, and the intake goes on."""

    async def endless(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        await asyncio.sleep(3600)
        raise AssertionError

    async with scene() as it:
        it.step(endless)
        it.patch.setattr(it.intake, "_longest_delivery_s", lambda _: 0.05)
        with pytest.raises(Problem) as ended:
            await it.send()
        assert ended.value.status == 504
        it.step(reply)
        it.patch.setattr(it.intake, "_longest_delivery_s", lambda _: 5.0)
        assert await it.send()


async def test_a_failure_of_one_delivery_does_not_end_the_others() -> None:
    """Each client gets the error of its own message."""

    async def by_text(message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        if message.text == "bad":
            raise LeaseLost
        await asyncio.sleep(0.05)
        return await reply(message, claim)

    async with scene() as it:
        it.step(by_text)
        bad, good = await asyncio.gather(it.send("bad"), it.send("good"), return_exceptions=True)
        assert isinstance(bad, LeaseLost) and isinstance(good, Receipt)
