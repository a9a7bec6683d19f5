"""Expired records are removed without any GET."""

from __future__ import annotations

from mesh import Replica, Worker
from quart_app.values import store as records
from quart_app.values import sweep
from quart_app.values.store import Place, Record
from tests.conftest import Backend, eventually


async def write(replica: Replica, expiries: dict[int, int]) -> None:
    transaction = replica.transaction()
    for value, expiry in expiries.items():
        place = Place(replica.database, replica.cls, "1-0")
        records.put(transaction, value, Record("1-0", expiry, [2, value // 2]), place)
    assert await replica.commit(transaction)


async def left(backend: Backend, replica: Replica) -> list[str]:
    client = backend.redis(db=replica.database)
    try:
        return sorted(await client.keys("*values*"))
    finally:
        await client.aclose()


async def test_a_sweep_removes_what_is_over_and_nothing_else(backend: Backend) -> None:
    """Record, index and expiry together."""
    one = await backend.join(Worker())
    now = one.now_ms()
    await write(one, {2 * n: now + (100 if n < 20 else 90_000) for n in range(10, 30)})

    async def swept() -> bool:
        return await sweep.sweep(one) == 0 and len(await one.store().hgetall(records.RECORDS)) == 10

    await eventually(swept)
    assert sorted(map(int, await one.store().hgetall(records.RECORDS))) == [2 * n for n in range(20, 30)]
    assert await one.store().zcard(records.EXPIRY) == 10
    assert await one.store().zcard(records.INDEX) == 20


async def test_after_the_last_ttl_nothing_is_left(backend: Backend) -> None:
    """The memory is back; where a value was is forgotten, too."""
    one = await backend.join(Worker())
    await write(one, {2 * n: one.now_ms() + 150 for n in range(10, 30)})
    assert await left(backend, one)

    async def gone() -> bool:
        return await left(backend, one) == []

    await eventually(gone)
    bus = backend.redis()
    assert await bus.keys("shared:values:*") == []
    await bus.aclose()


async def test_a_sweep_has_a_bound(backend: Backend) -> None:
    """One commit of at most so many, lest the server be held up; the next takes the rest."""
    one = await backend.join(Worker())
    now = one.now_ms()
    await write(one, {2 * n: now + 90_000 for n in range(1000, 1000 + sweep.MOST + 10)})
    # Their time is over, and the keys live on through one that is not.
    await write(one, {2: now + 99_000})
    transaction = one.transaction()
    for n in range(1000, 1000 + sweep.MOST + 10):
        record = Record("1-0", now - 1, [2, n])
        transaction.hset(records.RECORDS, {str(2 * n): str(record)})
        transaction.zadd(records.EXPIRY, {str(2 * n): now - 1})
    assert await one.commit(transaction)
    assert [await sweep.sweep(one) for _ in range(3)] == [sweep.MOST, 10, 0]
    assert list(await one.store().hgetall(records.RECORDS)) == ["2"]


async def test_a_remnant_without_a_record_is_cleared(backend: Backend) -> None:
    """Whatever left it, the sweep does not meet it for ever."""
    one = await backend.join(Worker())
    transaction = one.transaction()
    transaction.zadd(records.EXPIRY, {"14": one.now_ms() - 5})
    assert await one.commit(transaction)
    assert [await sweep.sweep(one), await sweep.sweep(one)] == [1, 0]
