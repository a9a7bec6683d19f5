"""Idempotency keys: one owner, one answer, and honesty about what nobody can know."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from quart_app.messages.idempotency import Claims, Done, InFlight, Lost, Mine, OtherBody

ANSWER = {"status": 200, "provider": "free", "response": "hello"}


def claims(redis: Redis, work_ms: int = 5_000) -> Claims:
    return Claims(redis, work_ms=work_ms, keep_ms=60_000)


async def mine(found: Claims, message_id: str = "m1") -> Mine:
    claimed = await found.claim("u", "k", b"body", message_id, 0)
    assert isinstance(claimed, Mine), claimed
    return claimed


async def test_of_many_with_one_key_one_handles_it(shared: Redis) -> None:
    """The others learn that somebody is at it."""
    found = await asyncio.gather(*(claims(shared).claim("u", "k", b"body", f"m{n}", 0) for n in range(20)))
    assert sorted(type(each).__name__ for each in found) == ["InFlight"] * 19 + ["Mine"]


async def test_what_is_done_is_answered_again(shared: Redis) -> None:
    """With the first one's id, for as long as answers are kept."""
    claimed = await mine(claims(shared))
    assert await claims(shared).begin_sending(claimed.claim)
    await claims(shared).finish(claimed.claim, ANSWER)
    assert await claims(shared).claim("u", "k", b"body", "m2", 0) == Done("m1", ANSWER)
    assert 0 < await shared.pttl(claimed.claim.key) <= 60_000


async def test_another_body_is_another_message(shared: Redis) -> None:
    """In flight or done, it is a conflict; another user's key is another key."""
    claimed = await mine(claims(shared))
    assert await claims(shared).claim("u", "k", b"other", "m2", 0) == OtherBody()
    await claims(shared).finish(claimed.claim, ANSWER)
    assert await claims(shared).claim("u", "k", b"other", "m2", 0) == OtherBody()
    assert isinstance(await claims(shared).claim("v", "k", b"other", "m2", 0), Mine)


async def test_a_key_that_was_given_back_is_as_new(shared: Redis) -> None:
    """Even for another body: no provider has anything of it."""
    claimed = await mine(claims(shared))
    await claims(shared).give_back(claimed.claim)
    assert isinstance(await claims(shared).claim("u", "k", b"other", "m2", 0), Mine)


async def until_too_old(redis: Redis, key: str) -> None:
    while True:
        seconds, micros = await redis.time()
        if int(seconds) * 1000 + int(micros) // 1000 >= int(await redis.hget(key, "until_ms") or 0):
            return
        await asyncio.sleep(0.005)


async def test_who_died_before_sending_is_replaced(shared: Redis) -> None:
    """Nothing had left; and should the first wake up, it may not send any more, nor answer."""
    first = await mine(claims(shared, work_ms=30))
    await until_too_old(shared, first.claim.key)
    second = await mine(claims(shared), "m2")
    assert not await claims(shared).begin_sending(first.claim)
    assert await claims(shared).begin_sending(second.claim)
    await claims(shared).finish(first.claim, ANSWER)
    await claims(shared).give_back(first.claim)
    assert await claims(shared).claim("u", "k", b"body", "m3", 0) == InFlight()


async def test_who_slept_past_its_time_may_not_send(shared: Redis) -> None:
    """Although nobody has taken over yet: somebody may at any moment."""
    first = await mine(claims(shared, work_ms=30))
    await until_too_old(shared, first.claim.key)
    assert not await claims(shared).begin_sending(first.claim)


async def test_who_died_while_sending_is_never_replaced(shared: Redis) -> None:
    """Nobody knows whether the message arrived, and nobody may send it again."""
    first = await mine(claims(shared, work_ms=200))
    assert await claims(shared).begin_sending(first.claim)
    await until_too_old(shared, first.claim.key)
    for _ in range(2):
        assert await claims(shared).claim("u", "k", b"body", "m2", 0) == Lost("m1")


@pytest.mark.parametrize("max_wait_ms", [0, 60_000])
async def test_a_claim_holds_as_long_as_its_message_may_take(shared: Redis, max_wait_ms: int) -> None:
    """The wait that was asked for comes on top."""
    claimed = await claims(shared, work_ms=5_000).claim("u", "k", b"body", "m1", max_wait_ms)
    assert isinstance(claimed, Mine)
    seconds, _ = await shared.time()
    left_ms = int(await shared.hget(claimed.claim.key, "until_ms") or 0) - int(seconds) * 1000
    assert 3_900 <= left_ms - max_wait_ms <= 6_000
