"""Requests that wait for their time, and operations that run by themselves: each runs once, although replicas die."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import Struct

from mesh import Busy, Class, Database, Mesh, Operations, Query, Ticket, Transaction, UsageError, keys
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.other_lines import instead
from tests.support.waiting import eventually

ONE_CLASS = {"classes": "A"}


class Note(Struct):
    text: str


def notes() -> Operations:
    """Operations that count in the database of the replica that runs them."""
    found = Operations("notes")
    texts = found.hash("texts", str, int, shared=True)

    @found.command
    async def put(tx: Transaction, body: Note) -> None:
        tx.set(texts[body.text], (await tx.get(texts[body.text]) or 0) + 1)

    @found.query
    async def read(view: Query) -> dict[str, int]:
        return await view.items(texts)

    @found.command
    async def send_and_fail(tx: Transaction, body: Note) -> None:
        tx.send(put, body, after=timedelta(seconds=1))
        raise UsageError(body.text)

    @found.command
    async def send_soon(tx: Transaction, body: Note) -> None:
        tx.send(put, body, after=timedelta(seconds=1))

    return found


@pytest.fixture
def table() -> Operations:
    return notes()


async def texts(mesh: Mesh, table: Operations) -> dict[str, int]:
    found: dict[str, int] = await mesh.call(table.operations["notes.read"])
    return found


async def seen(mesh: Mesh, table: Operations, expected: dict[str, int]) -> None:
    """Wait until exactly these texts were put."""

    async def all_there() -> bool:
        return await texts(mesh, table) == expected

    await eventually(all_there)


async def test_a_request_runs_once_at_its_time(table: Operations) -> None:
    """The request does not begin early, and runs once although three replicas wake it."""
    async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
        mesh = kit[0]
        await mesh.send(table.operations["notes.put"], Note("an hour"), after=timedelta(hours=1))
        at = datetime.fromtimestamp(mesh.now_ms() / 1000, UTC) + timedelta(hours=2)
        await mesh.send(table.operations["notes.put"], Note("two hours"), at=at)
        books = await mesh.books()
        assert (books["accepted"], books["waiting"]) == (2, 2)
        await kit.advance(minutes=59)
        assert await texts(mesh, table) == {}
        await kit.advance(minutes=2)
        assert await texts(mesh, table) == {"an hour": 1}
        await kit.advance(hours=1)
        assert await texts(mesh, table) == {"an hour": 1, "two hours": 1}
        assert (await mesh.books())["waiting"] == 0
        assert not [key async for key in kit.redis().scan_iter("mesh:later*")]


async def test_a_request_of_a_moment_ago_runs_at_once(table: Operations) -> None:
    async with MeshKit(table, **ONE_CLASS) as kit:
        mesh = kit[0]
        await mesh.send(table.operations["notes.put"], Note("late"), at=datetime(2000, 1, 1, tzinfo=UTC))
        await kit.advance(seconds=2)
        assert await texts(mesh, table) == {"late": 1}


async def test_over_a_server_it_runs_within_a_moment_of_its_time(backend: Backend, table: Operations) -> None:
    mesh = Mesh(await backend.join(table.worker))
    begun = asyncio.get_running_loop().time()
    await mesh.send(table.operations["notes.put"], Note("soon"), after=timedelta(milliseconds=300))
    await seen(mesh, table, {"soon": 1})
    assert asyncio.get_running_loop().time() - begun >= 0.3


async def test_a_send_belongs_to_the_commit(table: Operations) -> None:
    """A handler that fails has sent nothing; one that succeeds has."""
    async with MeshKit(table, **ONE_CLASS) as kit:
        mesh = kit[0]
        with pytest.raises(UsageError):
            await mesh.call(table.operations["notes.send_and_fail"], Note("no"))
        await mesh.call(table.operations["notes.send_soon"], Note("yes"))
        await kit.advance(seconds=3)
        assert await texts(mesh, table) == {"yes": 1}
        assert await kit.redis().hget(keys.BOOKS, "by_hand") is None, "the commit has counted what it sent"


async def test_requests_wait_for_a_replica(table: Operations) -> None:
    """All replicas are gone when they are due; the next one to join works them off."""
    async with MeshKit(table, **ONE_CLASS) as kit:
        await kit[0].send(table.operations["notes.put"], Note("kept"), after=timedelta(minutes=1))
        await kit.stop(0)
        await kit.advance(minutes=10)
        mesh = await kit.start()
        await kit.advance(seconds=5)
        assert await texts(mesh, table) == {"kept": 1}


async def test_lost_answers_change_nothing(table: Operations) -> None:
    """The answers to the send, to the waking and to the cancellation may be lost."""
    async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
        mesh = kit[0]
        kit.lose_answers(3)
        tickets = [
            await mesh.send(table.operations["notes.put"], Note(f"n{n}"), after=timedelta(seconds=10))
            for n in range(20)
        ]
        kit.lose_answers(1)
        assert await mesh.cancel(tickets[7])
        kit.lose_answers(1)
        await kit.advance(seconds=20)
        assert await texts(mesh, table) == {f"n{n}": 1 for n in range(20) if n != 7}
        assert (await mesh.books())["cancelled"] == 1


async def test_a_killed_replica_leaves_what_waits(table: Operations) -> None:
    async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
        for n in range(30):
            await kit[n % 3].send(table.operations["notes.put"], Note(f"n{n}"), after=timedelta(seconds=n))
        await kit.advance(seconds=5)
        await kit.kill(0)
        await kit.advance(seconds=5)
        await kit.kill(1)
        await kit.advance(seconds=40)
        assert await texts(kit[2], table) == {f"n{n}": 1 for n in range(30)}


class TestCancel:
    """`mesh.cancel(ticket)`."""

    async def test_while_it_waits(self, backend: Backend, table: Operations) -> None:
        mesh = Mesh(await backend.join(table.worker))
        ticket = await mesh.send(table.operations["notes.put"], Note("no"), after=timedelta(hours=1))
        assert await mesh.cancel(ticket)
        assert not await mesh.cancel(ticket)
        books = await mesh.books()
        assert (books["cancelled"], books["waiting"]) == (1, 0)

    async def test_while_it_is_worked_on(self, backend: Backend) -> None:
        """The handler's commit then changes nothing."""
        table = Operations("slow")
        done = table.value("done", int, 0, shared=True)
        begun, go_on = asyncio.Event(), asyncio.Event()

        @table.command
        async def work(tx: Transaction) -> None:
            tx.set(done, 1)
            begun.set()
            await go_on.wait()

        @table.query
        async def read(view: Query) -> int:
            return await view.get(done)

        mesh = Mesh(await backend.join(table.worker))
        ticket = await mesh.send(work)
        async with asyncio.timeout(10):
            await begun.wait()
        assert await mesh.cancel(ticket)
        go_on.set()
        books = await mesh.books()
        assert (books["cancelled"], books["in_flight"]) == (1, 0)
        assert await mesh.call(read) == 0

    async def test_when_it_is_over(self, backend: Backend, table: Operations) -> None:
        mesh = Mesh(await backend.join(table.worker))
        ticket = await mesh.send(table.operations["notes.put"], Note("done"))
        await seen(mesh, table, {"done": 1})
        assert not await mesh.cancel(ticket)
        assert not await mesh.cancel(Ticket("notes.put"))

    async def test_what_is_no_ticket_is_refused(self, backend: Backend, table: Operations) -> None:
        mesh = Mesh(await backend.join(table.worker))
        with pytest.raises(UsageError, match="the Ticket that send"):
            await mesh.cancel("notes.put")  # type: ignore[arg-type]


async def test_no_more_wait_than_may(backend: Backend, table: Operations) -> None:
    """A send beyond the bound is refused; nothing of a handler's transaction is applied then."""
    mesh = Mesh(await backend.join(table.worker, later_bound=2))
    for n in range(2):
        await mesh.send(table.operations["notes.put"], Note(f"n{n}"), after=timedelta(hours=1))
    with pytest.raises(Busy, match="too many requests wait"):
        await mesh.send(table.operations["notes.put"], Note("n2"), after=timedelta(hours=1))
    books = await mesh.books()
    assert (books["accepted"], books["waiting"]) == (2, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"after": 5},
        {"after": timedelta(seconds=-1)},
        {"after": timedelta.max},
        {"at": 5},
        {"at": datetime(2030, 1, 1)},
        {"at": datetime(1969, 1, 1, tzinfo=UTC)},
        {"after": timedelta(seconds=1), "at": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
)
async def test_mistakes_about_time_say_what_to_write(
    backend: Backend, table: Operations, options: dict[str, object]
) -> None:
    mesh = Mesh(await backend.join(table.worker))
    with pytest.raises(UsageError, match=r"after=|at="):
        await mesh.send(table.operations["notes.put"], Note("x"), **options)  # type: ignore[call-overload]
    assert (await mesh.books())["accepted"] == 0


async def test_a_request_for_a_database_and_a_class_that_come_later(table: Operations) -> None:
    """The target needs to be live only when the request runs."""
    async with MeshKit(table, **ONE_CLASS) as kit:
        mesh = kit[0]
        await mesh.send(table.operations["notes.put"], Note("two"), to=Database(2), after=timedelta(seconds=5))
        await mesh.send(table.operations["notes.put"], Note("A"), to=Class("A"), after=timedelta(seconds=5))
        await kit.advance(seconds=10)
        assert await texts(mesh, table) == {"A": 1}
        await kit.start()
        await kit.advance(seconds=5)
        assert await texts(mesh, table) == {"two": 1, "A": 1}


async def test_a_request_that_is_not_taken_from_the_waiting_ones_runs_again(
    monkeypatch: pytest.MonkeyPatch, table: Operations
) -> None:
    removal = "    redis.call('ZREM', later_key, name)\n    redis.call('DEL', later_key .. ':' .. name)\n"
    instead(monkeypatch, "WAKE", removal, "    redis.call('ZADD', later_key, now + 1000, name)\n")
    with pytest.raises(AssertionError, match="do not balance"):
        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
            await kit[0].send(table.operations["notes.put"], Note("twice"), after=timedelta(seconds=1))
            await kit.advance(seconds=5)
            assert (await texts(kit[0], table))["twice"] > 1
