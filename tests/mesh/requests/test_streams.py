"""The reader of a request stream, after failed reads and deleted streams."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mesh import Class, DeadlineExceeded, keys
from mesh.groups.reader import Delivered, GroupReader, pause_if_not_blocked
from mesh.raw import Body, Effects, Replica, Request, Store, Worker
from mesh.requests import streams
from mesh.requests.streams import RequestReader
from tests.support.backend import Backend
from tests.support.waiting import Turns

STREAM = Class("D").stream


async def reader(backend: Backend, replica: Replica, consumer: str = "tested") -> RequestReader:
    """Return a reader of a stream that no replica reads."""
    connection: Any = backend.connections.connection("test", block_ms=250)
    made = RequestReader(connection, replica._link, STREAM, consumer, keys.request_streams("ABCD", 16))
    await made.open()
    return made


def ids(entries: Any) -> list[str]:
    return [entry[0] for entry in entries]


async def test_entries_of_a_read_that_failed_are_worked_on(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of new entries returns pending ones, so the consumer takes its own entries over."""
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


async def delivered_three(client: Any, reading: RequestReader) -> list[str]:
    """Return the ids of three entries that a consumer has read; another one has claimed the second since then."""
    added = [await client.xadd(STREAM, {"op": "x", "body": "{}"}) for _ in range(3)]
    found: list[str] = []
    async with asyncio.timeout(5):
        while len(found) < 3:
            found += ids(await reading.read(10))
    await client.xclaim(STREAM, keys.GROUP, "another", 0, [added[1]])
    return added


async def test_keep_alive_says_what_is_no_longer_ours_and_takes_nothing_back(backend: Backend) -> None:
    """XCLAIM alone would take back an entry that another consumer has claimed."""
    one = await backend.join()
    client = backend.redis()
    reading = await reader(backend, one)
    mine, claimed, ended = await delivered_three(client, reading)
    await client.xdel(STREAM, ended)
    assert sorted(await reading.keep_alive([mine, claimed, ended])) == sorted([claimed, ended])
    pending = await client.xpending_range(STREAM, keys.GROUP, claimed, claimed, 1)
    assert pending[0]["consumer"] == "another"
    # No script has accepted the two that are left.
    await client.hincrby(keys.BOOKS, "accepted", 2)


async def test_only_what_is_still_ours_is_delivered_again(backend: Backend) -> None:
    """The delivery counts. What another consumer has claimed stays with it, and what is gone stays gone."""
    one = await backend.join()
    client = backend.redis()
    reading = await reader(backend, one)
    mine, claimed, ended = await delivered_three(client, reading)
    await client.xack(STREAM, keys.GROUP, ended)
    await client.xdel(STREAM, ended)
    assert [await reading.redeliver(id) for id in (mine, claimed, ended)] == [2, 0, 0]
    assert await reading.redeliver(mine) == 3
    pending = await client.xpending_range(STREAM, keys.GROUP, "-", "+", 9)
    assert {row["message_id"]: row["consumer"] for row in pending} == {mine: "tested", claimed: "another"}
    # No script has accepted the two that are left.
    await client.hincrby(keys.BOOKS, "accepted", 2)


async def test_a_stream_that_vanished_is_made_again_and_the_books_say_what_went_with_it(backend: Backend) -> None:
    """After DEL, FLUSHALL or XGROUP DESTROY the books count the lost requests, and balance."""
    worker = Worker()

    @worker.handles("x.tell")
    async def tell(request: Request, store: Store, transaction: Effects) -> None:
        return None

    one = await backend.join(worker)
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


async def test_what_is_written_by_hand_is_counted(backend: Backend) -> None:
    """An operator's XADD is a request as any other; the books say how many of them there were."""
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> None:
        return None

    one = await backend.join(worker)
    client: Any = backend.redis()
    async with asyncio.timeout(10):
        for _ in range(3):
            await client.xadd(keys.class_requests(one.cls), {"op": "count.put", "body": "{}"})
        while (await one.books())["answered"] < 3:
            await asyncio.sleep(0.01)
    await streams.keep_minute(one._link, one._streams)
    books = await one.books()
    assert books["accepted"] == sum(count for name, count in books.items() if name != "accepted") == 3
    assert await client.hget(keys.BOOKS, "by_hand") == "3"
    await client.aclose()


async def test_the_books_are_kept_once_a_minute(backend: Backend) -> None:
    """The first replica to come keeps the books; the id is the minute."""
    one = await backend.join()
    client: Any = backend.redis()
    await client.hset(keys.BOOKS, mapping={"accepted": 7, "answered": 7})
    added = [await streams.keep_minute(one._link, one._streams) for _ in range(3)]
    entries = await client.xrange(keys.MINUTES)
    assert sum(added) == len(entries) <= 2, "the test may cross the end of a minute"
    id, fields = entries[0]
    assert int(id.partition("-")[0]) % 60_000 == 0
    assert fields == {
        "accepted": "7", "answered": "7", "expired": "0", "cancelled": "0", "dead": "0", "lost": "0", "in_flight": "0",
        "waiting": "0",
    }  # fmt: skip
    await client.aclose()


async def test_a_request_that_expires_in_hand_counts_as_expired(backend: Backend) -> None:
    """The handler says that the deadline has passed; the caller gets a 504, which is no answer."""
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> None:
        raise DeadlineExceeded

    one = await backend.join(worker)
    with pytest.raises(DeadlineExceeded):
        await one.call(Class(one.cls), "count.put", {})
    books = await one.books()
    assert (books["expired"], books["answered"]) == (1, 0)


async def test_the_roster_tells_what_a_replica_does(backend: Backend) -> None:
    """Each renewal has the requests answered and in hand, how long they took, and how late the event loop is."""
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        await asyncio.sleep(0.005)
        return {}

    one = await backend.join(worker)
    for _ in range(5):
        await one.call(Class(one.cls), "count.put", {})
    client: Any = backend.redis()
    async with asyncio.timeout(10):
        while (row := await client.hgetall(keys.row(one.database))).get("answered") != "5":
            await asyncio.sleep(0.05)
    assert (row["in_hand"], row["not_ready"]) == ("0", "")
    assert 5000 <= int(row["p50_us"]) <= int(row["p99_us"]) < 5_000_000
    assert float(row["loop_ms"]) >= 0
    await client.aclose()


async def test_no_request_gets_an_id_below_that_of_an_earlier_one(backend: Backend) -> None:
    """Each leaves its time for the next one, which keeps to it where the server's clock has stepped back."""
    worker, given = Worker(), list[str]()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> None:
        given.append(request.id)

    one = await backend.join(worker)
    client: Any = backend.redis()
    await one.call(Class(one.cls), "count.put", {})
    latest = int(await client.get(keys.CLOCK))
    assert given[0].startswith(f"{latest}-")
    await client.set(keys.CLOCK, latest + 60_000)
    await one.call(Class(one.cls), "count.put", {})
    assert given[1].startswith(f"{latest + 60_000}-")
    await client.aclose()


async def test_a_read_that_does_not_block_is_followed_by_a_pause() -> None:
    """A server that has no stream to block on answers at once; the loop around the read does not run hot."""
    began = time.monotonic()
    await pause_if_not_blocked(began)
    assert time.monotonic() - began >= 0.01
    began = time.monotonic()
    await pause_if_not_blocked(began - 10)
    assert time.monotonic() - began < 0.01


async def test_a_stream_without_entries_is_no_reply() -> None:
    """Redis 7.0 answers so if the stream was deleted and made again while the read waited."""

    class Connection:
        async def send(self, commands: Any) -> Any:
            return [[["mesh:replies:r", []]]]

        async def execute(self, *command: Any) -> Any:
            return [["mesh:requests:A", []]]

    connection: Any = Connection()
    taken: list[str] = []
    reader = streams.ReplyReader(connection, "mesh:replies:r")
    await reader.read(lambda reply, words: taken.append(words[1]))
    await reader.read(lambda reply, words: taken.append(words[1]))
    assert taken == []
    began = time.monotonic()
    assert await GroupReader(connection.execute, connection, "mesh:requests:A", "workers", "replica-1").read(10) == []
    assert time.monotonic() - began >= 0.01, "a server that answers so again and again must not make the loop spin"


@pytest.mark.parametrize(("parse_s", "least", "most"), [(60, 0, 5), (-1, 100, 200)])
async def test_other_tasks_run_while_many_replies_are_read(
    monkeypatch: pytest.MonkeyPatch, parse_s: float, least: int, most: int
) -> None:
    """The reader gives the loop a turn each time it has parsed for so long, and not for each reply."""
    monkeypatch.setattr(streams, "PARSE_S", parse_s)
    words = ["from", "replica-1", "status", "ok", "forwards", "0", "body", "{}"]
    replies = [[f"{number}-0", ["request", f"r-{number}", "op", "x.do", *words]] for number in range(1, 101)]

    class Connection:
        async def send(self, commands: Any) -> Any:
            return [[["mesh:replies:r", replies]]]

    connection: Any = Connection()
    taken: list[str] = []
    async with Turns() as turns:
        await streams.ReplyReader(connection, "mesh:replies:r").read(lambda reply, words: taken.append(words[1]))
    assert taken == [f"r-{number}" for number in range(1, 101)]
    assert least <= turns.count <= most
