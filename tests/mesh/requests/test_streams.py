"""The reader of a request stream: what a failed read hides, and what a stream that vanished costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh import Class, keys
from mesh.groups.reader import Delivered, GroupReader
from mesh.raw import Replica, Worker
from mesh.requests.streams import RequestReader
from tests.support.backend import Backend

STREAM = Class("D").stream


async def reader(backend: Backend, replica: Replica, consumer: str = "tested") -> RequestReader:
    """A reader of a stream that no member reads."""
    connection: Any = backend.connections.connection("test", block_ms=250)
    made = RequestReader(connection, replica._link, STREAM, consumer, keys.request_streams("ABCD", 16))
    await made.open()
    return made


def ids(entries: Any) -> list[str]:
    return [entry[0] for entry in entries]


async def test_entries_of_a_read_that_failed_are_worked_on(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are pending for us then, and no read of new entries returns them. Nobody else need take them over."""
    worker = Worker()

    @worker.handles("test.count")
    async def count(request: Any, store: Any, transaction: Any) -> dict[str, int]:
        return {"deliveries": request.deliveries}

    read, losing = GroupReader.read, [True]

    async def lose_one(self: GroupReader, count: int, block_ms: int) -> list[Delivered]:
        entries = await read(self, count, block_ms)
        if entries and losing:
            losing.clear()
            raise ConnectionError("the answer was lost on its way")
        return entries

    monkeypatch.setattr(GroupReader, "read", lose_one)
    one = await backend.join(worker, claim_idle_ms=60_000)
    assert await one.call(Class(one.cls), "test.count", {}) == {"deliveries": 1}
    assert not losing


async def test_keep_alive_says_what_is_no_longer_ours_and_takes_nothing_back(backend: Backend) -> None:
    """A plain XCLAIM would steal what another claimed while we slept."""
    one = await backend.join()
    client = backend.redis()
    reading = await reader(backend, one)
    mine, claimed, ended = [await client.xadd(STREAM, {"op": "x", "body": "{}"}) for _ in range(3)]
    found: list[str] = []
    async with asyncio.timeout(5):
        while len(found) < 3:
            found += ids(await reading.read(10))
    await client.xclaim(STREAM, keys.GROUP, "another", 0, [claimed])
    await client.xdel(STREAM, ended)
    assert sorted(await reading.keep_alive([mine, claimed, ended])) == sorted([claimed, ended])
    pending = await client.xpending_range(STREAM, keys.GROUP, claimed, claimed, 1)
    assert pending[0]["consumer"] == "another"
    await client.aclose()


async def test_a_stream_that_vanished_is_made_again_and_the_books_say_what_went_with_it(backend: Backend) -> None:
    """DEL, FLUSHALL, XGROUP DESTROY: told, and balanced."""
    one = await backend.join()
    client = backend.redis()
    reading = await reader(backend, one)
    for _ in range(3):
        transaction = one.transaction()
        transaction.send(Class("D"), "x.tell", {})
        assert await one.commit(transaction)
    await client.delete(STREAM)
    async with asyncio.timeout(5):
        while (await one.books())["lost"] == 0:
            try:
                await reading.read(10)
            except Exception as error:
                # fakeredis says the missing group in other words.
                assert "XGROUP" in str(error) or "NOGROUP" in str(error)
                await reading.open()
    books = await one.books()
    assert (books["accepted"], books["lost"], books["in_flight"]) == (3, 3, 0)
    await client.aclose()
