"""Readers: what a mishap hides, and what a stream that vanished costs."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh import Class, Replica, keys
from mesh.requests.streams import RequestReader
from tests.support.backend import Backend

STREAM = Class("D").stream


async def reader(backend: Backend, replica: Replica, consumer: str = "tested") -> RequestReader:
    """A reader of a stream that no member reads."""
    line: Any = backend.connections.connection("test", block_ms=250)
    made = RequestReader(line, replica._link, STREAM, consumer, keys.request_streams("ABCD", 16))
    await made.open()
    return made


def ids(entries: Any) -> list[str]:
    return [entry[0] for entry in entries]


async def test_after_a_read_that_was_cancelled_the_next_one_begins_with_what_may_have_been_delivered(
    backend: Backend,
) -> None:
    """It lies in our own pending list then, where `>` never shows it."""
    one = await backend.join()
    client = backend.redis()
    reading = await reader(backend, one)
    first, second = [await client.xadd(STREAM, {"op": "x", "body": "{}"}) for _ in range(2)]
    # Delivered to us, and the answer lost on its way.
    await client.xreadgroup(keys.GROUP, "tested", {STREAM: ">"}, count=1)
    interrupted = asyncio.ensure_future(reading.read(10))
    await asyncio.sleep(0)
    interrupted.cancel()
    await asyncio.wait([interrupted])
    # fakeredis may have answered before anybody could interrupt it.
    found = [] if interrupted.cancelled() else ids(interrupted.result())
    async with asyncio.timeout(5):
        while len(found) < 2:
            found += ids(await reading.read(10))
    assert found == [first, second]
    await client.aclose()


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
