"""What a process knows of the others before it sends something: operations that nobody serves, and older releases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from msgspec import Struct
from redis.asyncio import Redis

from mesh import Class, Mesh, OlderRelease, Operation, Operations, Refused, Transaction, Unavailable, keys
from mesh.discovery import Publication, directory
from mesh.raw import Effects, Replica, Request, Store, Worker
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import books


class Note(Struct):
    text: str


notes = Operations("notes")
texts = notes.hash("texts", str, int, shared=True)
absent: Operation[Note, None] = Operation("notes.pat", Note, None)
other = Operations("other")


@notes.command
async def put(tx: Transaction, body: Note) -> None:
    tx.add(texts[body.text])


@notes.command
async def pass_on(tx: Transaction, body: Note) -> None:
    tx.add(texts["passed on"])
    tx.send(absent, body)


@notes.command
async def later(tx: Transaction, body: Note) -> None:
    tx.add(texts["later"])
    tx.send(put, body, after=timedelta(seconds=1))


@other.command
async def ask(tx: Transaction, body: Note) -> None:
    tx.send(put, body, to=Class("A"))


WAYS: dict[str, Callable[[Mesh], Awaitable[Any]]] = {
    "call": lambda mesh: mesh.call(absent, Note("a")),
    "parts": lambda mesh: mesh.parts(absent, Note("a")),
    "gather": lambda mesh: mesh.gather(absent, Note("a")),
    "send": lambda mesh: mesh.send(absent, Note("a")),
    "send later": lambda mesh: mesh.send(absent, Note("a"), after=timedelta(hours=1)),
    "call of the level below": lambda mesh: mesh.replica.call(Class("A"), "notes.pat", {}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_an_operation_that_nobody_serves_is_refused_before_anything_is_written(
    backend: Backend, way: str
) -> None:
    """The refusal names the operation with the nearest name."""
    mesh = await backend.mesh(notes)
    with pytest.raises(Refused, match=r"no live replica serves the operation 'notes\.pat'; did you mean 'notes\.put'"):
        await WAYS[way](mesh)
    assert (await mesh.books())["accepted"] == 0


@pytest.mark.parametrize("options", [{}, {"after": timedelta(hours=1)}])
async def test_a_client_without_a_lease_is_refused_likewise(backend: Backend, options: dict[str, timedelta]) -> None:
    mesh = await backend.mesh(notes)
    async with backend.connect() as client:
        with pytest.raises(Refused, match=r"no live replica serves .*; did you mean 'notes\.put'"):
            await client.send(absent, Note("a"), to=Class(mesh.cls), **options)
        with pytest.raises(Refused, match=r"no live replica serves .*; did you mean 'notes\.put'"):
            await client.call(absent, Note("a"), to=Class(mesh.cls))
        await client.send(put, Note("a"), to=Class(mesh.cls), **options)
    assert (await mesh.books())["accepted"] == 1


async def test_a_client_waits_for_an_older_release_to_leave(backend: Backend) -> None:
    older = await older_release(backend)
    async with backend.connect() as client:
        with pytest.raises(OlderRelease, match=older.id):
            await client.send(put, Note("a"), to=Class("B"), after=timedelta(hours=1))
        old: Operation[Note, dict[str, int]] = Operation("old.put", Note, dict[str, int])
        await client.send(old, Note("a"), to=Class("B"))
        assert await client.gather(old, Note("a")) == {older.database: {}}


async def test_a_handler_that_sends_such_a_request_is_refused_with_all_its_effects(backend: Backend) -> None:
    mesh = await backend.mesh(notes)
    with pytest.raises(Refused, match="no live replica serves the operation"):
        await mesh.call(pass_on, Note("a"))
    books = await mesh.books()
    assert (books["accepted"], books["in_flight"]) == (1, 0)
    assert await mesh.shared.hgetall("shared:notes:texts") == {}


async def test_what_another_replica_serves_is_sent(backend: Backend) -> None:
    """The sender is a replica that joined before or after the other, or a handler."""
    before = await backend.join(other.worker, class_="B")
    one = await backend.join(notes.worker, class_="A")
    after = Mesh(await backend.join(other.worker, class_="C"))
    await Mesh(before).call(put, Note("first"), to=Class("A"))
    await after.call(put, Note("second"), to=Class("A"))
    await after.call(ask, Note("third"))
    await Mesh(one).call(put, Note("fourth"))
    assert (await after.books())["accepted"] == 5


async def test_what_the_last_replica_has_served_is_unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second after it has left in order. Until then its class says that it is gone."""
    async with MeshKit(other, classes="AB") as kit:
        await kit.start(notes)
        await kit[0].call(put, Note("a"), to=Class(kit[1].cls))
        await kit.stop(1)
        await kit.advance(seconds=60)
        with pytest.raises(Refused, match=r"no live replica serves the operation 'notes\.put'"):
            await kit[0].call(put, Note("a"), to=Class("A"))


async def test_an_operation_whose_replica_is_expected_back_is_not_unserved() -> None:
    """The caller may try again soon, so the error says so."""
    async with MeshKit(other, classes="AB") as kit:
        await kit.start(notes)
        cls = kit[1].cls
        await kit.kill(1)
        await kit.advance(seconds=10)
        with pytest.raises(Unavailable, match="expected back"):
            await kit[0].call(put, Note("a"), to=Class(cls))


async def older_release(backend: Backend) -> Replica:
    """A replica of class B whose row says nothing of operations, as before the first level."""
    worker = Worker()

    @worker.handles("old.put")
    async def handle(request: Request, store: Store, effects: Effects) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Publication, "row", {})
        return await backend.join(worker, class_="B")


async def test_an_older_release_may_serve_anything(backend: Backend) -> None:
    """An older release does not say what it serves, so requests are sent to it."""
    await older_release(backend)
    mesh = Mesh(await backend.join(notes.worker, class_="A"))
    old: Operation[Note, None] = Operation("old.put", Note, None)
    await mesh.send(old, Note("a"), to=Class("B"))
    with pytest.raises(Refused, match="no replica here knows the operation"):
        await mesh.call(absent, Note("a"), to=Class("B"))


async def test_options_are_refused_while_an_older_release_is_live(backend: Backend) -> None:
    """Nothing is written while the options are refused; when the older release has left they work."""
    older = await older_release(backend)
    mesh = Mesh(await backend.join(notes.worker, class_="A"))
    says = f"after= and at= cannot be used while {older.id} .database {older.database}, an older version. is live"
    with pytest.raises(OlderRelease, match=says) as caught:
        await mesh.send(put, Note("a"), after=timedelta(seconds=1))
    assert (caught.value.retry_after, caught.value.facts["replica"]) == (5, older.id)
    with pytest.raises(OlderRelease, match=says):
        await mesh.call(later, Note("a"))
    assert (await mesh.books())["waiting"] == 0
    assert await mesh.shared.hgetall("shared:notes:texts") == {}
    await backend.stop(0)
    await mesh.send(put, Note("a"), after=timedelta(hours=1))
    await mesh.call(later, Note("a"))
    assert (await mesh.books())["waiting"] == 2


async def test_a_handler_without_a_caller_sends_while_an_older_release_is_live(backend: Backend) -> None:
    """Nobody would hear of a refusal, and the effect of its request would be lost."""
    await older_release(backend)
    mesh = Mesh(await backend.join(notes.worker, class_="A"))
    await mesh.send(later, Note("a"))
    await books(mesh, answered=2, waiting=0)
    assert await mesh.shared.hgetall("shared:notes:texts") == {"later": "1", "a": "1"}


async def test_many_who_look_share_one_lookup(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only sends what it serves itself never looks."""
    mesh = await backend.mesh(notes)
    looks, script = list[object](), mesh.replica._link.script

    def counting(found: Any, *words: Any, **options: Any) -> Any:
        looks.append(found) if found is directory.READ_SERVED else None
        return script(found, *words, **options)

    monkeypatch.setattr(mesh.replica._link, "script", counting)
    await mesh.call(put, Note("a"))
    await mesh.send(put, Note("a"))
    assert looks == []
    known = mesh.replica._directory
    for _ in range(20):
        assert await known.all_understand(directory.LATER)
    assert len(looks) == 1


@pytest.mark.parametrize("outcome", ["silence", "a cancellation"])
async def test_a_lookup_without_an_answer_refuses_nothing(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """A process that cannot read the roster sends what it does not know; an option that needs the answer waits."""
    monkeypatch.setattr(directory, "LOOKUP_WAIT_S", 0.05)
    mesh = await backend.mesh(notes)
    script, waiting = mesh.replica._link.script, asyncio.get_running_loop().create_future()
    if outcome == "a cancellation":
        waiting.cancel()

    def without_answer(found: Any, *words: Any, **options: Any) -> Any:
        return waiting if found is directory.READ_SERVED else script(found, *words, **options)

    monkeypatch.setattr(mesh.replica._link, "script", without_answer)
    known = mesh.replica._directory
    await asyncio.gather(*(known.check([absent.name]) for _ in range(3)))
    assert not await known.all_understand(directory.LATER)
    with pytest.raises(Refused, match="no replica here knows the operation"):
        await mesh.call(absent, Note("a"))
    waiting.cancel()


async def test_a_process_that_cannot_reach_redis_does_not_look(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submission itself says that Redis is away; here nothing is refused, and nothing is known."""
    mesh = await backend.mesh(notes)
    known = mesh.replica._directory
    monkeypatch.setattr(mesh.replica._link, "_down", True)
    monkeypatch.setattr(mesh.replica._link, "script", None)
    await known.check([absent.name], directory.LATER)
    assert not await known.all_understand(directory.LATER)
    monkeypatch.undo()
    assert await known.all_understand(directory.LATER)


@pytest.mark.parametrize(("count", "complete"), [(4000, 1), (4001, 0)])
async def test_more_operations_than_one_answer_holds_are_not_all_known(
    shared: Redis, count: int, complete: int
) -> None:
    """Then none is refused, because one of those that are left out may serve it."""
    names = [f"many.op{number}" for number in range(count)]
    row = {"replica": "replica-1", "serves": "digest", "reads": "3", "version": "1.2"}
    await shared.hset(keys.SERVED, "digest", " ".join(names))
    await shared.hset(keys.row(2), mapping=row)
    known, *facts = await directory.READ_SERVED.run(shared, (), keys.MOST_DATABASES)
    assert (known, facts[:4], facts[4:]) == (complete, [3, "replica-1", "2", "1.2"], names[:4000])


@pytest.mark.parametrize("database", [0, keys.MOST_DATABASES - 1])
async def test_every_database_is_looked_at(shared: Redis, database: int) -> None:
    """The replica that serves an operation, or is expected back, may have the first or the last one."""

    async def served(op: str, cls: str, patient: int) -> bool:
        return bool(await directory.ASK_SERVES.run(shared, [keys.SERVED], keys.MOST_DATABASES, cls, op, patient))

    await shared.hset(keys.SERVED, "digest", "notes.put notes.later")
    await shared.hset(keys.row(database), mapping={"class": "A", "serves": "digest", "state": "ready"})
    assert await served("notes.later", "A", 0)
    assert not await served("notes.later", "B", 1)
    assert not await served("notes", "A", 1)
    await shared.hset(keys.row(database), "state", "left")
    assert not await served("notes.later", "A", 1)
    await shared.delete(keys.row(database))
    await shared.set(keys.expected(database), "A")
    assert await served("any", "A", 1)
    assert not await served("any", "A", 0)
    assert not await served("any", "B", 1)
