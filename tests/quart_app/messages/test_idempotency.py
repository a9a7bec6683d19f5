"""Idempotency keys: one owner, one answer, and an honest error about what nobody can know."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from mesh.errors import Unavailable
from quart_app.messages.idempotency import (
    UNUSED,
    ClaimWithoutKey,
    Finished,
    IdempotencyKeys,
    InProgress,
    KeyClaim,
    OtherBody,
    SenderLost,
)

ANSWER = {"status": 200, "provider": "free", "response": "hello"}


def keys(redis: Redis, work_ms: int = 5_000) -> IdempotencyKeys:
    return IdempotencyKeys(redis, work_ms=work_ms, keep_ms=60_000)


async def claimed(found: IdempotencyKeys, message_id: str = "m1", body: bytes = b"body") -> KeyClaim:
    claim = await found.claim("u", "k", body, message_id, 0)
    assert isinstance(claim, KeyClaim), claim
    return claim


async def test_one_of_many_requests_with_a_key_delivers(shared: Redis) -> None:
    """The others learn that it is in progress."""
    found = await asyncio.gather(*(keys(shared).claim("u", "k", b"body", f"m{n}", 0) for n in range(20)))
    assert sorted(type(each).__name__ for each in found) == ["InProgress"] * 19 + ["KeyClaim"]


async def test_an_answer_is_given_again(shared: Redis) -> None:
    """The answer has the id of the first message, and is given as long as answers are kept."""
    async with await claimed(keys(shared)) as claim:
        assert await claim.begin_sending()
        claim.to_record = ANSWER
    assert await keys(shared).claim("u", "k", b"body", "m2", 0) == Finished("m1", ANSWER)
    assert 0 < await shared.pttl(claim.redis_key) <= 60_000


async def test_another_body_with_the_key_is_a_conflict(shared: Redis) -> None:
    """There is a conflict in progress and afterwards; the key of another user is another key."""
    async with await claimed(keys(shared)) as claim:
        assert await keys(shared).claim("u", "k", b"other", "m2", 0) == OtherBody()
        claim.to_record = ANSWER
    assert await keys(shared).claim("u", "k", b"other", "m2", 0) == OtherBody()
    assert isinstance(await keys(shared).claim("v", "k", b"other", "m2", 0), KeyClaim)


async def test_an_unused_key_is_free_again(shared: Redis) -> None:
    """No provider has the message, so the key may have another body."""
    async with await claimed(keys(shared)) as claim:
        claim.to_record = UNUSED
    assert await claimed(keys(shared), "m2", b"other")


@pytest.mark.parametrize("error", [asyncio.CancelledError, RuntimeError])
@pytest.mark.parametrize("began", [False, True])
async def test_a_claim_without_an_outcome_stays(shared: Redis, error: type[BaseException], began: bool) -> None:
    """Cancelled or broken in the middle: nobody may take a message over that may have been sent."""
    with pytest.raises(error):
        async with await claimed(keys(shared)) as claim:
            if began:
                await claim.begin_sending()
            raise error
    assert await keys(shared).claim("u", "k", b"body", "m2", 0) == InProgress()
    await shared.hset(claim.redis_key, "until_ms", "0")
    found = await keys(shared).claim("u", "k", b"body", "m2", 0)
    assert found == SenderLost("m1") if began else isinstance(found, KeyClaim)


async def until_too_old(redis: Redis, name: str) -> None:
    """Wait until a claim may be taken over."""
    while True:
        seconds, micros = await redis.time()
        if int(seconds) * 1000 + int(micros) // 1000 >= int(await redis.hget(name, "until_ms") or 0):
            return
        await asyncio.sleep(0.005)


async def test_an_owner_that_died_before_sending_is_replaced(shared: Redis) -> None:
    """If it wakes up later, it may neither send nor answer nor free the key."""
    first = await claimed(keys(shared, work_ms=30))
    await until_too_old(shared, first.redis_key)
    second = await claimed(keys(shared), "m2")
    assert not await first.begin_sending()
    assert await second.begin_sending()
    for outcome in (ANSWER, UNUSED):
        async with first:
            first.to_record = outcome
    assert await keys(shared).claim("u", "k", b"body", "m3", 0) == InProgress()


async def test_an_owner_that_slept_for_too_long_may_not_send(shared: Redis) -> None:
    """Nobody has taken the claim over yet, but somebody may at any moment."""
    first = await claimed(keys(shared, work_ms=30))
    await until_too_old(shared, first.redis_key)
    assert not await first.begin_sending()


async def test_an_owner_that_died_while_sending_is_never_replaced(shared: Redis) -> None:
    """Nobody knows whether the message arrived, and nobody may send it again."""
    first = await claimed(keys(shared, work_ms=200))
    assert await first.begin_sending()
    await until_too_old(shared, first.redis_key)
    for _ in range(2):
        assert await keys(shared).claim("u", "k", b"body", "m2", 0) == SenderLost("m1")


@pytest.mark.parametrize("max_wait_ms", [0, 60_000])
async def test_a_claim_lasts_as_long_as_its_message_may_take(shared: Redis, max_wait_ms: int) -> None:
    """The wait that the client asks for is added."""
    claim = await keys(shared, work_ms=5_000).claim("u", "k", b"body", "m1", max_wait_ms)
    assert isinstance(claim, KeyClaim)
    seconds, _ = await shared.time()
    left_ms = int(await shared.hget(claim.redis_key, "until_ms") or 0) - int(seconds) * 1000
    assert 3_900 <= left_ms - max_wait_ms <= 6_000


async def test_an_answer_that_cannot_be_kept_at_first_is_tried_again(
    shared: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few times; then the key stays "sending"."""
    finish, failures = IdempotencyKeys.finish, 0

    async def fail_twice(self: IdempotencyKeys, *arguments: object) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise Unavailable
        await finish(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(IdempotencyKeys, "finish", fail_twice)
    async with await claimed(keys(shared)) as claim:
        claim.to_record = ANSWER
    assert await keys(shared).claim("u", "k", b"body", "m2", 0) == Finished("m1", ANSWER)


async def test_a_message_without_a_key_is_its_own() -> None:
    """Nothing is stored for a message without a key."""
    async with ClaimWithoutKey() as claim:
        assert await claim.begin_sending()
        claim.to_record = ANSWER
