"""Hashing: bounded, off the event loop, and as slow for an unknown address as for a known one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher

from mesh.errors import Busy
from quart_app.messages.passwords import MOST_WAITING_PER_THREAD, Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(thread_count=1)
    yield made
    made.close()


async def test_a_password_matches_its_own_hash_only(passwords: Passwords) -> None:
    """Hashes are salted, so the same password has different ones."""
    one, two = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    assert one != two and one.startswith("$argon2id$")
    assert await passwords.matches(one, "correct horse")
    assert not await passwords.matches(one, "correct house")
    assert not await passwords.matches("not a hash", "correct horse")


async def test_an_unknown_account_takes_as_long_as_a_known_one(passwords: Passwords) -> None:
    """The time of an answer does not tell which addresses are registered. The decoy's password opens nothing."""
    known = await passwords.hash("correct horse")

    async def seconds(hashed: str | None) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            assert not await passwords.matches(hashed, "no account has this password")
            times.append(time.perf_counter() - began)
        return min(times)

    assert await seconds(None) > 0.3 * await seconds(known)


async def test_the_queue_is_bounded_and_leaves_room_for_known_callers(passwords: Passwords) -> None:
    """A caller gets 503 instead of waiting for minutes; strangers fill at most half of the queue."""
    hashed = await passwords.hash("correct horse")
    strangers = [asyncio.create_task(passwords.matches(hashed, "guess")) for _ in range(2 * MOST_WAITING_PER_THREAD)]
    await asyncio.sleep(0)
    known = [
        asyncio.create_task(passwords.matches(hashed, "correct horse", is_known=True))
        for _ in range(MOST_WAITING_PER_THREAD)
    ]
    answers = await asyncio.gather(*strangers, return_exceptions=True)
    refused = [each for each in answers if isinstance(each, Busy)]
    assert len(refused) == len(answers) - MOST_WAITING_PER_THREAD // 2 - 1
    assert refused[0].retry_after == 1
    let_in = [each for each in await asyncio.gather(*known, return_exceptions=True) if each is True]
    assert len(let_in) == MOST_WAITING_PER_THREAD // 2
    await passwords.hash("and afterwards there is room again")


async def test_known_callers_do_not_wait_behind_strangers(passwords: Passwords) -> None:
    """A known caller waits for the hash in progress, not for those in the queue."""
    hashed, order = await passwords.hash("correct horse"), list[str]()

    async def ask(name: str, *, is_known: bool) -> None:
        await passwords.matches(hashed, "guess", is_known=is_known)
        order.append(name)

    strangers = [asyncio.create_task(ask(f"stranger {n}", is_known=False)) for n in range(6)]
    await asyncio.sleep(0)
    await asyncio.gather(*strangers, *(ask(f"known {n}", is_known=True) for n in range(2)))
    assert order[:3] == ["stranger 0", "known 0", "known 1"]


async def test_a_caller_that_leaves_the_queue_holds_up_nobody(passwords: Passwords) -> None:
    """The caller may wait for its turn, or its password may be in the middle of a hash."""
    hashed = await passwords.hash("correct horse")
    waiting = [asyncio.create_task(passwords.matches(hashed, "guess")) for _ in range(6)]
    await asyncio.sleep(0.005)
    for task in waiting[:5]:
        task.cancel()
    assert await asyncio.wait_for(waiting[5], 10) is False
    assert await asyncio.wait_for(passwords.matches(hashed, "correct horse"), 10)


async def test_the_event_loop_goes_on_meanwhile(passwords: Passwords) -> None:
    """Other requests are served meanwhile."""
    work = asyncio.gather(*(passwords.hash("correct horse") for _ in range(8)))
    longest, last = 0.0, time.perf_counter()
    while not work.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert longest < 0.1


def test_a_hash_of_other_costs_is_outdated(passwords: Passwords) -> None:
    """The next login renews it."""
    assert passwords.is_outdated(PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("correct horse"))
