"""Expired records are removed without any GET."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import pytest

from mesh import MeshError
from mesh.raw import Replica, Worker
from quart_app.values import store as records
from quart_app.values import sweep
from quart_app.values.pace import Pace
from quart_app.values.store import Place, Record
from quart_app.values.sweep import Swept
from tests.support.backend import Backend
from tests.support.waiting import eventually

WORKER = Worker()
WORKER.writes_with(records.VERBS)


async def swept(replica: Replica) -> int:
    """How many records one sweep looked at."""
    return (await sweep.sweep(replica, Pace())).looked_at_count


async def write(replica: Replica, expiries: dict[int, int]) -> None:
    transaction = replica.transaction()
    ends = {str(value): expiry for value, expiry in expiries.items()}
    factors = {str(value): f"2 {value // 2}" for value in expiries}
    records.put(transaction, Place(replica.database, replica.cls, "1-0"), ends, factors)
    assert await replica.commit(transaction)


async def left(backend: Backend, replica: Replica) -> list[str]:
    client = backend.redis(db=replica.database)
    try:
        return sorted(await client.keys("*values*"))
    finally:
        await client.aclose()


async def test_a_sweep_removes_what_is_over_and_nothing_else(backend: Backend) -> None:
    """The sweep removes record and index together."""
    one = await backend.join(WORKER)
    now = one.now_ms()
    await write(one, {2 * n: now + (100 if n < 20 else 90_000) for n in range(10, 30)})

    async def is_swept() -> bool:
        return await swept(one) == 0 and len(await one.store().hgetall(records.RECORDS)) == 10

    await eventually(is_swept)
    assert sorted(map(int, await one.store().hgetall(records.RECORDS))) == [2 * n for n in range(20, 30)]
    assert await one.store().zcard(records.EXPIRY) == 1, "they were written together, and end together"
    assert await one.store().zcard(records.INDEX) == 20


async def test_after_the_last_ttl_nothing_is_left(backend: Backend) -> None:
    """The memory is back; where a value was is forgotten, too."""
    one = await backend.join(WORKER)
    await write(one, {2 * n: one.now_ms() + 150 for n in range(10, 30)})
    assert await left(backend, one)

    async def gone() -> bool:
        return await left(backend, one) == []

    await eventually(gone)
    bus = backend.redis()
    assert await bus.keys("shared:values:*") == []
    await bus.aclose()


async def test_a_sweep_has_a_bound(backend: Backend) -> None:
    """One commit removes a bounded number of records, so that it does not hold up the server."""
    one = await backend.join(WORKER)
    now = one.now_ms()
    await write(one, {2 * n: now + 90_000 for n in range(1000, 1000 + 4 * sweep.MOST_GROUPS + 10)})
    # Their time is over, and the keys live on through one that is not.
    await write(one, {2: now + 99_000})
    transaction = one.transaction()
    over = now - sweep.REMOVAL_DELAY_MS - 1
    for n in range(1000, 1000 + 4 * sweep.MOST_GROUPS + 10):
        record = Record("1-0", over, f"2 {n}")
        transaction.hset(records.RECORDS, {str(2 * n): str(record)})
        transaction.zadd(records.EXPIRY, {str(2 * n): over})
    assert await one.commit(transaction)
    looked_at = [await swept(one) for _ in range(6)]
    assert looked_at == [sweep.MOST_GROUPS] * 4 + [10, 0]
    assert list(await one.store().hgetall(records.RECORDS)) == ["2"]


async def test_a_remnant_without_a_record_is_cleared(backend: Backend) -> None:
    """The sweep does not meet the same remnant again, whatever left it."""
    one = await backend.join(WORKER)
    transaction = one.transaction()
    transaction.zadd(records.EXPIRY, {"14": one.now_ms() - sweep.REMOVAL_DELAY_MS - 5})
    assert await one.commit(transaction)
    assert [await swept(one), await swept(one)] == [1, 0]


async def test_what_was_refreshed_is_looked_at_again_when_its_new_time_is_over(backend: Backend) -> None:
    """A group of values is due when its first value may be. Those that live on are scheduled again."""
    one = await backend.join(WORKER)
    now = one.now_ms()
    await write(one, {2 * n: now + 100 for n in range(10, 20)})
    (first, *_) = await records.read_records(one.store(), ["20"])
    assert first is not None
    transaction = one.transaction()
    place, factors = Place(one.database, one.cls, "2-0"), {"20": first.factors}
    records.put(transaction, place, {"20": now + 90_000}, factors, existing={"20": first})
    assert await one.commit(transaction)
    assert await one.store().zcard(records.EXPIRY) == 1, "what is looked at early enough needs no second entry"

    async def is_swept() -> bool:
        return await swept(one) == 10

    await eventually(is_swept)
    assert list(await one.store().hgetall(records.RECORDS)) == ["20"]
    assert await records.read_due(one.store(), now + 90_000, 9) == [["20"]]


async def test_a_shorter_time_to_live_counts(backend: Backend) -> None:
    """The record is looked at when the shorter time is over, not when the former one was to be."""
    one = await backend.join(WORKER)
    now = one.now_ms()
    await write(one, {2 * n: now + 90_000 for n in range(10, 12)})
    (first,) = await records.read_records(one.store(), ["20"])
    assert first is not None
    transaction = one.transaction()
    place, factors = Place(one.database, one.cls, "2-0"), {"20": first.factors}
    records.put(transaction, place, {"20": now + 100}, factors, existing={"20": first})
    assert await one.commit(transaction)

    async def gone() -> bool:
        await swept(one)
        return list(await one.store().hgetall(records.RECORDS)) == ["22"]

    await eventually(gone)


async def test_the_sweep_rests_unless_more_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep rests after an error, and goes on at once after a full round."""
    rounds: list[float] = []
    outcomes = [MeshError("no"), Swept(9, True), Swept(9, True)]

    async def one_round(replica: Replica, pace: Pace) -> Swept:
        rounds.append(asyncio.get_running_loop().time())
        found = outcomes.pop(0) if outcomes else Swept(0, False)
        if isinstance(found, MeshError):
            raise found
        return found

    monkeypatch.setattr(sweep, "sweep", one_round)
    replica: Any = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.75):
            await sweep.run(replica, 200, Pace())
    pauses = [after - before for before, after in itertools.pairwise(rounds)]
    assert 5 <= len(rounds) <= 6
    assert pauses[0] > 0.15 and max(pauses[1:3]) < 0.15 and min(pauses[3:]) > 0.15
