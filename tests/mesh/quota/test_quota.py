"""The shared allowance: one count for everybody, by Redis's clock, over a fake and a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from fakeredis.commands_mixins import server_mixin
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from mesh.errors import Unavailable
from mesh.quota.quota import Closed, Granted, Probing, Quota, Reservation
from mesh.testing.fake_server import FakeClient
from mesh.wire.script import Script

LIMIT = 3
BLOCK_MS = 120
HOLD_MS = 60


class Bench:
    """A quota on one server, and a way to let that server's time pass."""

    def __init__(self, redis: Redis, advance: Callable[[int], Awaitable[None]]) -> None:
        self.redis = redis
        self.advance = advance
        self.prefix = f"shared:test:{uuid4().hex}"

    def quota(self, **changes: Any) -> Quota:
        return Quota(self.redis, self.prefix, **{"limit": LIMIT, "block_ms": BLOCK_MS, "hold_ms": HOLD_MS} | changes)

    async def open(self, **changes: Any) -> Quota:
        """A quota past its first probe, its window not begun."""
        quota = self.quota(**changes)
        await quota.unsent(await granted(quota))
        await self.redis.hset(f"{self.prefix}:allowance", "caution", 0)
        return quota


async def granted(quota: Quota) -> Reservation:
    verdict = await quota.reserve()
    assert isinstance(verdict, Granted), verdict
    return verdict.reservation


async def closed(quota: Quota) -> int:
    """For how long nothing can be sent, in ms."""
    verdict = await quota.reserve()
    assert isinstance(verdict, Closed), verdict
    return verdict.allowance.retry_after_ms


class Clock:
    """The time of every fake server."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def time(self) -> float:
        return self.ms / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(server_mixin, "time", SimpleNamespace(time=moved.time))
    return moved


@pytest.fixture(params=["fake", "real"])
async def bench(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Bench]:
    if request.param == "fake":
        redis: Redis = FakeClient(decode_responses=True)

        async def advance(ms: int) -> None:
            clock.ms += ms
    else:
        redis = Redis.from_url(request.getfixturevalue("server").url, decode_responses=True)

        async def advance(ms: int) -> None:
            until = await now_ms(redis) + ms
            while (left := until - await now_ms(redis)) > 0:
                await asyncio.sleep(left / 1000)

    yield Bench(redis, advance)
    await redis.aclose()


async def now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def test_no_more_are_let_through_than_the_provider_takes(bench: Bench) -> None:
    """Many senders at once, over several clients, get no more slots than the limit."""
    await bench.open()
    quotas = [bench.quota() for _ in range(8)]
    verdicts = await asyncio.gather(*(quota.reserve() for quota in quotas for _ in range(5)))
    assert sum(isinstance(each, Granted) for each in verdicts) == LIMIT
    assert sum(isinstance(each, Closed) for each in verdicts) == 40 - LIMIT


async def test_the_first_request_ever_goes_alone(bench: Bench) -> None:
    """While nothing is known of the provider, one request goes first; then all may go."""
    quota = bench.quota()
    first = await granted(quota)
    assert isinstance(await quota.reserve(), Probing)
    await quota.used(first)
    assert [type(await quota.reserve()) for _ in range(3)] == [Granted, Granted, Closed]


async def test_the_block_counts_from_the_last_answer(bench: Bench) -> None:
    """The block does not begin at the reservation, because the provider sees a request later."""
    quota = await bench.open(hold_ms=5_000)
    reservations = [await granted(quota) for _ in range(LIMIT)]
    await bench.advance(BLOCK_MS)
    for reservation in reservations:
        await quota.used(reservation)
    assert BLOCK_MS - 40 < await closed(quota) <= BLOCK_MS
    await bench.advance(BLOCK_MS)
    await granted(quota)


async def test_a_window_that_is_over_opens_whole(bench: Bench) -> None:
    """After the block every slot is free again, without a probe where nothing is in doubt."""
    quota = await bench.open()
    for _ in range(3):
        for reservation in [await granted(quota) for _ in range(LIMIT)]:
            await quota.used(reservation)
        assert isinstance(await quota.reserve(), Closed)
        await bench.advance(BLOCK_MS)


async def test_a_request_that_never_left_gives_its_slot_back(bench: Bench) -> None:
    """The slot is given back once, and only while its window lasts."""
    quota = await bench.open()
    reservations = [await granted(quota) for _ in range(LIMIT)]
    await quota.unsent(reservations[0])
    await quota.unsent(reservations[0])
    await granted(quota)
    assert isinstance(await quota.reserve(), Closed)


async def test_an_uncertain_request_keeps_its_slot(bench: Bench) -> None:
    """A sender without an answer must not assume that the provider did not count its request."""
    quota = await bench.open()
    for reservation in [await granted(quota) for _ in range(LIMIT)]:
        await quota.uncertain(reservation)
    assert await closed(quota) <= BLOCK_MS


async def test_a_refusal_closes_for_everybody_at_once(bench: Bench) -> None:
    """The allowance stays closed as long as the provider says, even if slots are left."""
    quota, other = await bench.open(), bench.quota()
    allowance = await quota.refused(await granted(quota), 500)
    assert allowance.remaining == 0
    assert 400 < await closed(other) <= 500


async def test_a_refusal_without_a_time_closes_for_one_block(bench: Bench) -> None:
    """The provider need not say for how long."""
    quota = await bench.open()
    await quota.refused(await granted(quota))
    assert BLOCK_MS - 40 < await closed(quota) <= BLOCK_MS


async def test_after_a_refusal_one_probe_opens_for_all(bench: Bench) -> None:
    """One request goes first and the others wait for its outcome; a success opens."""
    quota = await bench.open()
    await quota.refused(await granted(quota), 50)
    await bench.advance(50)
    probe = await granted(quota)
    assert isinstance(await quota.reserve(), Probing)
    await quota.used(probe)
    await granted(quota)
    await granted(quota)


async def test_a_refused_probe_closes_again(bench: Bench) -> None:
    """Nobody else was sent to the closed provider."""
    quota = await bench.open()
    await quota.refused(await granted(quota), 50)
    await bench.advance(50)
    await quota.refused(await granted(quota), 70)
    assert 30 < await closed(quota) <= 70


async def test_a_probe_whose_sender_died_hands_over(bench: Bench) -> None:
    """When the sender of a probe died, the next one probes after the hold."""
    quota = bench.quota()
    await granted(quota)
    assert isinstance(await quota.reserve(), Probing)
    await bench.advance(HOLD_MS)
    await granted(quota)


async def test_a_dead_sender_costs_one_slot_and_the_next_window_has_all(bench: Bench) -> None:
    """Its slot counts as used at the last moment at which it could have left.

    Then as many successes are needed as there are doubts, and one more.
    """
    quota = await bench.open()
    await granted(quota)
    for _ in range(LIMIT - 1):
        await quota.used(await granted(quota))
    assert isinstance(await quota.reserve(), Closed)
    await bench.advance(HOLD_MS + BLOCK_MS)
    for _ in range(2):
        careful = await granted(quota)
        assert isinstance(await quota.reserve(), Probing)
        await quota.used(careful)
    await granted(quota)
    assert isinstance(await quota.reserve(), Closed)


async def test_successes_far_apart_prove_nothing(bench: Bench) -> None:
    """Between them the provider may have blocked and opened again, so the doubt stays."""
    quota = await bench.open(limit=5, hold_ms=20)
    await granted(quota)
    for _ in range(4):
        await quota.used(await granted(quota))
    await bench.advance(20 + BLOCK_MS)
    await quota.used(await granted(quota))
    await bench.advance(BLOCK_MS)
    for _ in range(2):
        await quota.used(await granted(quota))
    await granted(quota)
    assert isinstance(await quota.reserve(), Probing)


async def test_a_late_outcome_changes_nothing_in_the_next_window(bench: Bench) -> None:
    """A sender that slept through a whole block neither frees nor takes a slot of the new window."""
    quota = await bench.open(limit=2)
    late = await granted(quota)
    await quota.used(await granted(quota))
    await bench.advance(HOLD_MS + BLOCK_MS)
    await quota.used(await granted(quota))
    before = await quota.look()
    assert (await quota.unsent(late)).remaining == before.remaining == 1
    assert (await quota.used(late)).remaining == 1


async def test_looking_changes_nothing(bench: Bench) -> None:
    """Remaining and reopening are told as a reservation would find them."""
    quota = await bench.open()
    assert (await quota.look()).remaining == LIMIT
    for reservation in [await granted(quota) for _ in range(LIMIT)]:
        await quota.used(reservation)
    seen = await quota.look()
    assert (seen.remaining, seen.reopens_ms is not None) == (0, True)
    await bench.advance(BLOCK_MS)
    stored = await bench.redis.hgetall(f"{bench.prefix}:allowance")
    assert (await quota.look()).remaining == LIMIT
    assert await bench.redis.hgetall(f"{bench.prefix}:allowance") == stored


async def test_a_lost_reply_does_not_take_a_second_slot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call with the same id gets the same reservation."""
    quota = await bench.open()
    run = Script.run
    calls: list[Any] = []

    async def loses_first_reply(script: Script, *arguments: Any) -> Any:
        calls.append(await run(script, *arguments))
        if len(calls) == 1:
            raise RedisConnectionError("the reply was lost")
        return calls[-1]

    monkeypatch.setattr(Script, "run", loses_first_reply)
    await granted(quota)
    assert len(calls) == 2
    monkeypatch.undo()
    assert (await quota.look()).remaining == LIMIT - 1


async def test_lost_scripts_are_loaded_again(bench: Bench) -> None:
    """A restarted server does not know the scripts any more."""
    quota = await bench.open()
    await bench.redis.script_flush()
    await granted(quota)


async def test_a_lost_state_starts_with_one_probe(bench: Bench) -> None:
    """After the server lost its data the provider may be closed, so one request goes first."""
    quota = await bench.open()
    await bench.redis.delete(f"{bench.prefix}:allowance", f"{bench.prefix}:held")
    await granted(quota)
    assert isinstance(await quota.reserve(), Probing)


async def test_redis_away_is_an_error_of_the_mesh() -> None:
    """Without Redis nothing may be sent."""
    nowhere = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    with pytest.raises(Unavailable):
        await Quota(nowhere, "shared:x", limit=1, block_ms=1).reserve()


def test_a_sender_that_slept_may_not_send() -> None:
    """The right to send ends by itself."""
    assert Reservation("a", time.monotonic() + 5).may_send()
    assert not Reservation("a", time.monotonic()).may_send()


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"block_ms": 0}, {"hold_ms": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    """Wrong numbers are refused when the quota is made."""
    with pytest.raises(ValueError, match="at least 1"):
        Quota(FakeClient(), "shared:x", **{"limit": 1, "block_ms": 1, "hold_ms": 1} | wrong)


class Provider:
    """The strictest provider: it counts what it saw, blocks, and never forgets a count that is not full."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seen, self.blocked_until, self.refusals = clock, 0, 0, 0

    def take(self) -> int | None:
        """Take a request and return None, or return for how many ms the provider still blocks."""
        if self.clock.ms < self.blocked_until:
            self.refusals += 1
            return self.blocked_until - self.clock.ms
        if self.seen == LIMIT:
            self.seen = 0
        self.seen += 1
        if self.seen == LIMIT:
            self.blocked_until = self.clock.ms + BLOCK_MS
        return None


#: What a sender does: how it ends, how long until it sends, how long until it records that.
LIVES = st.tuples(
    st.sampled_from(["answers"] * 8 + ["unsent", "dies unsent", "dies sent"]), st.integers(0, 9), st.integers(0, 9)
)
#: Senders at one moment, and how long nothing happens after them.
ROUNDS = st.tuples(
    st.lists(LIVES, min_size=1, max_size=5), st.sampled_from([0, 0, HOLD_MS, BLOCK_MS, BLOCK_MS + HOLD_MS])
)
Life = tuple[str, int, int]
ALONE: list[Life] = [("answers", 0, 0)]
#: A doubt, two successes far apart, and then two close together that prove nothing.
SLOW: list[tuple[list[Life], int]] = [
    (ALONE, 0),
    ([("dies unsent", 0, 0)], HOLD_MS),
    (ALONE, BLOCK_MS),
    (ALONE, BLOCK_MS),
    (ALONE, 0),
    (ALONE, BLOCK_MS),
    (ALONE * 3, 0),
]


@settings(max_examples=250, deadline=None)
@example(rounds=SLOW)
@given(rounds=st.lists(ROUNDS, min_size=2, max_size=10))
def test_refusals_are_never_more_than_windows_with_a_death(rounds: list[tuple[list[Life], int]]) -> None:
    """Rounds of concurrent senders against the strictest provider: without a death it never refuses; all deaths of one
    window together cost one refusal at most, whatever comes between."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(server_mixin, "time", SimpleNamespace(time=clock.time))
        asyncio.run(_live(clock, rounds))


async def _live(clock: Clock, rounds: list[tuple[list[Life], int]]) -> None:
    redis = FakeClient(decode_responses=True)
    quota = Quota(redis, "shared:model", limit=LIMIT, block_ms=BLOCK_MS, hold_ms=HOLD_MS)
    provider, window, with_deaths = Provider(clock), 0, set[int]()
    for lives, pause in rounds:
        flying = []
        for life in lives:
            before = await _taken(redis)
            if isinstance(verdict := await quota.reserve(), Granted):
                flying.append((verdict.reservation, life))
                window += await _taken(redis) != (before[0] + 1, before[1])
                with_deaths |= {window} if life[0].startswith("dies") else set()
        answers: dict[str, int | None] = {}
        for reservation, (end, send_ms, _) in flying:
            clock.ms += send_ms
            if end in ("answers", "dies sent"):
                answers[reservation.id] = provider.take()
        for reservation, (end, _, record_ms) in flying:
            clock.ms += record_ms
            await _record(quota, reservation, end, answers.get(reservation.id))
        assert provider.refusals <= len(with_deaths)
        clock.ms += pause
    await redis.aclose()


async def _taken(redis: Redis) -> tuple[int, bool]:
    """Return the slots granted in this window, and whether the provider itself has closed it."""
    taken, blocked_until = await redis.hmget("shared:model:allowance", "taken", "blocked_until_ms")
    return int(taken or 0), int(blocked_until or 0) > 0


async def _record(quota: Quota, reservation: Reservation, end: str, answer: int | None) -> None:
    if end == "unsent":
        await quota.unsent(reservation)
    elif end == "answers" and answer is None:
        await quota.used(reservation)
    elif end == "answers":
        await quota.refused(reservation, answer)


async def test_a_client_that_does_not_decode_answers_will_do() -> None:
    """The words of the scripts are read as bytes, too."""
    quota = Quota(FakeClient(), f"shared:test:{uuid4().hex}", LIMIT, BLOCK_MS, HOLD_MS)
    await quota.used(await granted(quota))
    assert isinstance(await quota.reserve(), Granted | Probing)


async def test_each_doubt_needs_a_success_of_its_own(bench: Bench) -> None:
    """Until the last of them, requests go one at a time."""
    quota = await bench.open(limit=9, block_ms=60_000)
    await bench.redis.hset(f"{bench.prefix}:allowance", "caution", 4)
    for _ in range(3):
        reservation = await granted(quota)
        assert isinstance(await quota.reserve(), Probing)
        assert (await quota.used(reservation)).caution == 4
    assert (await quota.used(await granted(quota))).caution == 0
    assert [type(await quota.reserve()) for _ in range(3)] == [Granted] * 3
