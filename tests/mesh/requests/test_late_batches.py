"""What comes late over a closed connection, and overwritten keys, end no membership and double nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as redis_errors

from mesh import Class, Database, DeadlineExceeded, keys
from mesh.raw import Body, Effects, Request, Store, Worker, join
from tests.support.backend import Backend
from tests.support.waiting import eventually

STREAM = "mesh:requests:A"


@pytest.fixture
def worker() -> Worker:
    """Two operations: one that takes long, and one that answers at once."""
    table = Worker()

    @table.handles("wait")
    async def wait(request: Request, store: Store, effects: Effects) -> Body:
        await asyncio.sleep(30)
        return {}

    @table.handles("quick")
    async def quick(request: Request, store: Store, effects: Effects) -> Body:
        return {"answered": True}

    return table


async def test_a_batch_that_arrives_after_later_ones_changes_nothing(
    backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network may deliver what a closed connection has sent, when it was sent again over another one long ago."""
    one = await backend.join(worker)
    sent: list[Any] = []
    send = one._link._connection.send

    async def noted(commands: Any) -> list[Any]:
        sent.extend(command for command in commands if command[0] == "EVALSHA")
        return await send(commands)

    monkeypatch.setattr(one._link._connection, "send", noted)
    for _ in range(3):
        assert await one.call(Class("A"), "quick", {}) == {"answered": True}
        transaction = one.transaction()
        transaction.shared.incrby("count", 1)
        assert await one.commit(transaction)
    before, late = await one.books(), one._connections.connection("late")
    for key in (keys.submitted(one.id), keys.committed(one.id)):
        *earlier_batches, _ = [command for command in sent if key in command]
        assert len(earlier_batches) >= 2
        for command in earlier_batches:
            (reply,) = await late.send([command])
            assert isinstance(reply, redis_errors.ResponseError) and "this batch comes late" in str(reply)
    assert await one.books() == before
    assert await one.shared.get("shared:count") == "3"
    await late.aclose()


async def test_overwritten_books_end_no_membership(backend: Backend, worker: Worker) -> None:
    """A call that nobody answers in time is removed, although it cannot be counted."""
    one = await backend.join(worker)
    await backend.redis().set(keys.BOOKS, "overwritten")
    with pytest.raises(DeadlineExceeded):
        await one.call(Class("A"), "wait", {}, deadline_ms=200)

    async def removed() -> bool:
        return bool(await backend.redis().xlen(STREAM) == 0)

    await eventually(removed, 5)
    assert (await one.books())["accepted"] == 0
    await backend.redis().delete(keys.BOOKS)
    assert await one.call(Class("A"), "quick", {}) == {"answered": True}


async def test_a_request_on_an_overwritten_stream_can_be_given_up(mesh_of: Backend, worker: Worker) -> None:
    """Its caller gets the deadline, another call of the same step is removed, and the replica stays a member."""
    one = await mesh_of.join(worker)
    calls = [
        asyncio.create_task(one.call(to, "wait", {}, deadline_ms=300)) for to in (Class("A"), Database(one.database))
    ]
    client, own_stream = mesh_of.redis(), keys.database_requests(one.database)

    async def submitted() -> bool:
        return bool(await client.xlen(STREAM) == 1 and await client.xlen(own_stream) == 1)

    await eventually(submitted, 5)
    await client.set(STREAM, "overwritten")
    for call in calls:
        with pytest.raises(DeadlineExceeded):
            await call

    async def removed() -> bool:
        return bool(await client.xlen(own_stream) == 0)

    await eventually(removed, 5)
    await client.delete(STREAM)

    async def works() -> bool:
        try:
            return await one.call(Class("A"), "quick", {}, deadline_ms=500) == {"answered": True}
        except DeadlineExceeded:
            return False

    await eventually(works, 10)


@pytest.mark.parametrize("place", ["bus", "own"])
async def test_overwritten_notes_of_what_a_database_holds_repeat_no_effect(
    backend: Backend, worker: Worker, place: str
) -> None:
    """The commit makes the notes anew: after the writes, nothing may end the script."""

    @worker.handles("count")
    async def count(request: Request, store: Store, effects: Effects) -> Body:
        effects.incrby("x:count", 1)
        return {"counted": True}

    one = await backend.join(worker)
    number, key = (0, keys.WRITTEN) if place == "bus" else (one.database, f"db{one.database}:written")
    client = backend.redis(number)
    await client.set(key, "overwritten")
    assert await one.call(Class("A"), "count", {}) == {"counted": True}
    assert await one.store().get("x:count") == "1"
    assert await client.type(key) == "zset"
    if place == "own":
        assert await client.zscore(key, "*") == float("inf")  # other keys may live for ever
    assert (await one.books())["answered"] == 1
    await client.set(key, "overwritten")
    await backend.join(worker)


async def test_an_overwritten_queue_does_not_keep_a_replica_from_leaving(backend: Backend, worker: Worker) -> None:
    """Its successor need not wait for the end of the lease."""
    async with join(worker, backend.settings, connections=backend.connections) as one:
        await backend.redis().set(keys.database_requests(one.database), "overwritten")
    assert not await backend.redis().exists(keys.lease(one.database))
