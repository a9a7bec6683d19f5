"""The filter of primes: complete at any moment, of about the right size, and gone with the records."""

from __future__ import annotations

import asyncio
import random

import gmpy2
import pytest

from mesh import Busy
from mesh.raw import Body, Effects, Replica, Request, Store, Worker, among
from quart_app.values import notation, primes
from quart_app.values import store as records
from quart_app.values.factorise import find_factors
from quart_app.values.pace import Pace
from quart_app.values.primes import FILTER_NAME, Primes
from quart_app.values.store import Place
from tests.support.backend import Backend

RANDOM = random.Random(20)


async def read(request: Request, store: Store, transaction: Effects) -> Body:
    return {}


def worker() -> Worker:
    found = Worker()
    found.handles("test.read", effect=False)(read)
    found.writes_with(records.VERBS)
    found.uses(primes.READ_PRIMES)
    found.uses(primes.READ_STATE)
    return found


async def put(replica: Replica, kept: Primes | None, *values: int, ms: int = 60_000) -> None:
    """Store some values; without `kept` as an earlier release does."""
    transaction = replica.transaction()
    texts = {str(value): find_factors(value) for value in values}
    expiries = dict.fromkeys(texts, replica.now_ms() + ms)
    filters = () if kept is None else kept.filters()
    records.put(transaction, Place(replica.database, replica.cls, "1-0"), expiries, texts, filters=filters)
    assert await replica.commit(transaction)


async def has(replica: Replica, number: str) -> bool:
    """Whether a gather for this prime asks the replica."""
    return replica.database in await replica.gather("test.read", {}, among=among(FILTER_NAME, number))


async def lacks(replica: Replica, values: list[int]) -> set[str]:
    """The primes of these values that the filter does not have."""
    names = {prime for value in values for prime in notation.primes(find_factors(value))}
    return {name for name in names if not await has(replica, name)}


async def test_a_filter_has_what_was_stored_before_and_after_it(backend: Backend) -> None:
    """A filter without records has nothing; before it exists, everybody is asked."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    assert await has(one, "1000003")
    await put(one, None, 6 * 1000003)
    await kept.refresh(one)
    assert await lacks(one, [6 * 1000003]) == set()
    assert not await has(one, "1000033") and not await has(one, "7")
    await put(one, kept, 7 * 1000033, 2**70)
    assert await lacks(one, [6 * 1000003, 7 * 1000033, 2**70]) == set()
    assert not await has(one, "11")


async def test_nothing_is_left_of_a_filter_after_the_last_record(backend: Backend) -> None:
    """The key ends with the last record, or when that was removed before its time."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    await kept.refresh(one)
    filter = await one.filters.read_from_row(FILTER_NAME)
    assert filter is not None and not await one.shared.exists(f"shared:{filter.key}")
    await put(one, kept, 10, ms=90_000)
    await put(one, kept, 6, ms=30_000)
    end = await backend.redis(db=one.database).pexpiretime(f"db{one.database}:{records.RECORDS}")
    assert await one.shared.pexpiretime(f"shared:{filter.key}") == end
    transaction = one.transaction()
    for value in ("6", "10"):
        (record,) = await records.read_records(one.store(), [value])
        assert record is not None
        records.remove(transaction, {value: record})
    assert await one.commit(transaction)
    for _ in range(2):
        await kept.refresh(one)
    assert await backend.redis().keys("shared:values:primes:*") == []
    assert await has(one, "5"), "without a filter the database is asked"


async def test_a_filter_grows_with_its_primes_and_shrinks_after_them(backend: Backend) -> None:
    """A filter of the right size says little that is wrong, and takes few bytes."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    await kept.refresh(one)
    small = await one.filters.read_from_row(FILTER_NAME)
    values = [RANDOM.randrange(2**62, 2**63) for _ in range(400)]
    await put(one, kept, *values)
    await kept.refresh(one)
    await kept.refresh(one)
    large = await one.filters.read_from_row(FILTER_NAME)
    assert small is not None and large is not None
    assert large.bits > 4 * small.bits and large.bits / 8 < 20 * len(values)
    assert not await one.shared.exists(f"shared:{small.key}"), "the former one is deleted"
    assert await lacks(one, values) == set()
    others = [str(gmpy2.next_prime(RANDOM.randrange(10**12))) for _ in range(100)]
    assert sum([await has(one, prime) for prime in others]) < 10
    transaction = one.transaction()
    found = await records.read_records(one.store(), [str(value) for value in values[1:]])
    over = {str(value): record for value, record in zip(values[1:], found, strict=True) if record is not None}
    records.remove(transaction, over)
    assert await one.commit(transaction)
    for _ in range(2):
        await kept.refresh(one)
    assert await one.filters.read_from_row(FILTER_NAME) == small
    assert await lacks(one, values[:1]) == set()


async def test_what_is_stored_while_a_filter_is_made_is_in_it(backend: Backend) -> None:
    """At any moment the filter that the row names has every prime of the records."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    stored: list[int] = []

    async def store() -> None:
        for _ in range(12):
            values = [RANDOM.randrange(2**30, 2**40) for _ in range(5)]
            await put(one, kept, *values)
            stored.extend(values)

    async def make_again() -> None:
        while any(not task.done() for task in storing):
            await kept._make(one, kept._kept[0] if kept._kept else None, 2**13, one.now_ms() + 60_000)
            await kept.refresh(one)

    async with asyncio.TaskGroup() as tasks:
        storing = [tasks.create_task(store()) for _ in range(2)]
        tasks.create_task(make_again())
        while len(stored) < 90:
            await asyncio.sleep(0)
            assert await lacks(one, stored[-1:]) == set()
    assert await lacks(one, stored) == set()


async def test_a_filter_that_the_row_does_not_name_is_made_again(backend: Backend) -> None:
    """After the server was emptied the row comes back without it."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    await put(one, kept, 6)
    await kept.refresh(one)
    await one.filters.put_in_row(FILTER_NAME, None)
    assert await has(one, "11")
    await kept.refresh(one)
    assert not await has(one, "11") and await lacks(one, [6]) == set()
    again = Primes(Pace())
    await again.refresh(one)
    assert await lacks(one, [6]) == set(), "a filter that nobody writes to does not stay in the row"
    await put(one, again, 35)
    assert await lacks(one, [6, 35]) == set()


async def test_a_filter_is_not_made_without_room_for_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Redis is full, everybody is asked; when there is room again, the filter is made."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    asked_for: list[int] = []

    def full(amount: int) -> None:
        asked_for.append(amount)
        raise Busy("Redis is full")

    monkeypatch.setattr(one.memory, "store", full)
    await kept.refresh(one)
    assert asked_for == [512] and await has(one, "7")
    monkeypatch.undo()
    await kept.refresh(one)
    assert not await has(one, "7")


async def test_primes_that_the_filter_has_for_certain_are_not_set_again(backend: Backend) -> None:
    """Those below the first prime that the index did not have when the filter was made. They are most of all primes."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    await kept.refresh(one)
    assert [filter.below for filter in kept.filters()] == [2], "an empty one has none"
    await put(one, kept, 2 * 3 * 7 * 1000003)
    await kept._make(one, kept.filters()[0], 4096, one.now_ms() + 60_000)
    await kept.refresh(one)
    assert [filter.below for filter in kept.filters()] == [5]
    await put(one, kept, 3 * 5 * 11, 2**70)
    assert await lacks(one, [2 * 3 * 7 * 1000003, 3 * 5 * 11]) == set()
    assert not await has(one, "13")
    assert sum(1 for n in range(10**5) if gmpy2.is_prime(n)) == primes.COMMON_COUNT


async def test_a_filter_that_has_ended_with_its_records_is_made_again(backend: Backend) -> None:
    """The primes that it had for certain are gone with it."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    await put(one, None, 6, ms=500)
    await kept.refresh(one)
    await asyncio.sleep(0.7)
    await put(one, kept, 10)
    assert await lacks(one, [10]) == set()
    await kept.refresh(one)
    assert await lacks(one, [10]) == set()
    assert not await has(one, "7")


@pytest.mark.parametrize("left", ["nothing", "a list"])
async def test_a_filter_that_somebody_deletes_or_overwrites_hides_nothing(backend: Backend, left: str) -> None:
    """All records are found, and within a second there is another filter."""
    one = await backend.join(worker())
    kept = Primes(Pace())
    await put(one, None, 6)
    await kept.refresh(one)
    filter = await one.filters.read_from_row(FILTER_NAME)
    assert filter is not None
    client = backend.redis()
    await client.delete(f"shared:{filter.key}")
    if left == "a list":
        await client.rpush(f"shared:{filter.key}", "x")
    assert await lacks(one, [6]) == set()
    await put(one, kept, 10)
    assert await lacks(one, [6, 10]) == set()
    await kept.refresh(one)
    await kept.refresh(one)
    assert await lacks(one, [6, 10]) == set()
    assert not await has(one, "7")
    await client.aclose()
