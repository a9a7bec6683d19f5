"""Requests whose operation another release of the same class serves: they are handed on, and none is lost."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest
from msgspec import Struct

from mesh import Class, Database, Limit, Mesh, Operation, Operations, Transaction, Unserved, keys
from mesh.discovery import directory
from mesh.later.retry import DEFER
from mesh.requests import runner
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import books
from tests.support.waiting import eventually

REQUESTS = 30


class Note(Struct):
    text: str


old = Operations("old")
new = Operations("new")
texts = new.hash("texts", str, int, shared=True)
order = new.value("order", str, "", shared=True)
absent: Operation[Note, None] = Operation("new.gone", Note, None)


@old.command
async def plain(tx: Transaction, body: Note) -> None: ...


@new.command
async def put(tx: Transaction, body: Note) -> str:
    tx.add(texts[body.text])
    return body.text


@new.command(limit=Limit(concurrency=1))
async def append(tx: Transaction, body: Note) -> None:
    tx.set(order, await tx.get(order) + body.text)


@new.command
async def pass_on(tx: Transaction, body: Note) -> None:
    tx.add(texts["passed on"])
    tx.send(absent, body)
    tx.send(absent, body, to=Database(tx.database))


async def two_releases(backend: Backend, older: int = 1) -> Mesh:
    """Some replicas of a release without `new`, and one with it; all of one class."""
    for _ in range(older):
        await backend.join(old.worker, class_="A")
    return Mesh(await backend.join(new.worker, class_="A"))


async def marks(mesh: Mesh) -> dict[str, str]:
    found: dict[str, str] = await mesh.shared.hgetall("shared:new:texts")
    return found


async def test_every_request_comes_to_a_replica_that_serves_it(backend: Backend) -> None:
    """Calls are answered and sends take effect once, although two of three replicas do not know the operation."""
    mesh = await two_releases(backend, older=2)
    names = [f"c{number}" for number in range(REQUESTS)]
    assert await asyncio.gather(*(mesh.call(put, Note(name)) for name in names)) == names
    for number in range(REQUESTS):
        await mesh.send(put, Note(f"s{number}"))
    await books(mesh, answered=2 * REQUESTS, waiting=0, in_flight=0, dead=0)
    assert await marks(mesh) == {f"{way}{number}": "1" for way in "cs" for number in range(REQUESTS)}


async def test_without_the_mechanism_requests_are_lost(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is refused, and a send becomes a dead letter, where the older replica is the one that reads it."""

    async def nobody(self: object, op: str, cls: str, *, counts_expected: bool) -> bool:
        return False

    monkeypatch.setattr(directory.Directory, "is_served", nobody)
    mesh = await two_releases(backend, older=2)
    with pytest.raises(Unserved, match="no replica here knows"):
        await asyncio.gather(*(mesh.call(put, Note("a")) for _ in range(REQUESTS)))
    for _ in range(REQUESTS):
        await mesh.send(put, Note("b"))
    await books(mesh, waiting=0, in_flight=0)
    assert await mesh.shared.xlen(keys.DEAD) > 0


async def test_a_request_that_is_handed_on_keeps_its_place_its_time_and_its_key(backend: Backend) -> None:
    """Lanes keep their order, `tx.at` is the time of the send, and calls with one key have one answer."""
    mesh = await two_releases(backend, older=2)
    letters = "abcdef"
    for letter in letters:
        await mesh.send(append, Note(letter))
    calls = [mesh.call(put, Note("k"), key="one") for _ in range(10)]
    assert await asyncio.gather(*calls) == ["k"] * 10
    await books(mesh, answered=len(letters) + 1, waiting=0)
    assert await mesh.shared.get("shared:new:order") == letters
    assert await marks(mesh) == {"k": "1"}


async def test_while_only_others_read_it_a_request_is_handed_on_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pauses grow, because the replica that serves the request may be busy: each is half of the request's age."""
    handed: list[int] = []
    async with MeshKit(old, classes="A") as kit:
        link = kit[0].replica._link
        script = link.script

        def counting(found: object, *words: object) -> object:
            if found is directory.ASK_SERVES:
                return asyncio.sleep(0, 1)
            if found is DEFER:
                handed.append(int(str(words[3])))
            return script(found, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(link, "script", counting)
        await kit.redis().xadd(
            keys.class_requests("A"), {"op": put.name, "request": "r", "reply_to": "", "body": '{"text":"a"}'}
        )
        await kit.advance(seconds=5)
        assert handed[-1] == runner.LONGEST_HAND_ON_MS
        for before, after in itertools.pairwise(handed):
            assert min(before + before // 2, runner.LONGEST_HAND_ON_MS) <= after
        assert 20 <= len(handed) <= 40
        monkeypatch.undo()
        await books(kit[0], dead=1, waiting=0)


async def test_what_nobody_serves_becomes_a_dead_letter_where_nobody_would_hear_of_it(backend: Backend) -> None:
    """The effect of the handler that sent the request stays, for the stream of a class and of a database."""
    mesh = Mesh(await backend.join(new.worker, class_="A"))
    await mesh.send(pass_on, Note("a"))

    async def buried() -> bool:
        return await mesh.shared.xlen(keys.DEAD) == 2

    await eventually(buried)
    letters = [fields for _, fields in await mesh.shared.xrange(keys.DEAD)]
    assert {letter["stream"] for letter in letters} == {
        keys.class_requests("A"), keys.database_requests(mesh.database)
    }  # fmt: skip
    assert all("no replica here knows the operation 'new.gone'" in letter["reason"] for letter in letters)
    assert await marks(mesh) == {"passed on": "1"}


async def test_a_send_waits_for_a_replica_that_is_expected_back() -> None:
    """A caller hears at once that nobody serves the operation, because its time is short."""
    async with MeshKit(classes="A", replicas=0) as kit:
        await kit.start(old)
        await kit.start(new)
        async with kit.connect() as client:
            await kit.kill(1)
            await kit.advance(seconds=15)
            assert [member.database for member in await client.roster()] == [kit[0].database]
            await client.send(put, Note("a"), to=Class("A"))
            await books_of(kit, waiting=1)
            with pytest.raises(Unserved):
                await client.call(put, Note("b"), to=Class("A"))
            await kit.start(new)
            await books_of(kit, waiting=0, dead=0, in_flight=0)
            assert await kit.redis().hgetall("shared:new:texts") == {"a": "1"}
            await kit.kill(2)
            await client.send(put, Note("c"), to=Class("A"))
            for _ in range(30):
                await kit.advance(seconds=10)
            await books_of(kit, waiting=0, dead=1)


async def books_of(kit: MeshKit, **expected: int) -> None:
    """Wait until the books say this."""

    async def so() -> bool:
        return expected.items() <= (await kit.books()).items()

    await eventually(so)


async def test_a_caller_hears_that_no_replica_of_the_class_serves_it(backend: Backend) -> None:
    """A call with a key does not keep this answer, because a newer release may serve the operation soon."""
    other = Mesh(await backend.join(new.worker, class_="B"))
    one = await backend.join(old.worker, class_="A")
    for to in (Class("A"), Database(one.database)):
        for key in (None, "k"):
            with pytest.raises(Unserved, match=r"no replica here knows the operation 'new\.put'"):
                await other.call(put, Note("a"), to=to, key=key)
    await backend.join(new.worker, class_="A")
    await backend.stop(1)
    assert await other.call(put, Note("a"), to=Class("A"), key="k", deadline=timedelta(seconds=10)) == "a"
