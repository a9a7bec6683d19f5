"""Transactions and queries: guarded reads, own writes, and what only a commit can know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import structlog
from msgspec import Struct

from mesh import (
    Database,
    GuardTooLarge,
    Mesh,
    MeshError,
    Operations,
    Query,
    ReadAfterWrite,
    Transaction,
    UsageError,
)
from mesh.operations import transaction
from tests.support.backend import Backend
from tests.support.greetings import Greet, adults, ages, census, count, greetings, names, put, runs, seen, total

#: Operations whose handler a test writes: it gets the transaction or the query.
table = Operations("free")
text = table.value("text", str)
number = table.value("number", int, 0)
ten = table.value("ten", int, 10)
points = table.hash("points", str, int)
group = table.set("group", str)
ranks = table.sorted_set("ranks", str)
common = table.value("common", int, 0, shared=True)

_todo: list[Callable[[Any], Awaitable[Any]]] = []


class Nothing(Struct):
    """No more than an object."""


@table.command
async def write(tx: Transaction) -> Any:
    """Run what the test wants."""
    return await _todo[-1](tx)


@table.query
async def read(view: Query) -> Any:
    """Run what the test wants."""
    return await _todo[-1](view)


async def run(mesh: Mesh, todo: Callable[[Transaction], Awaitable[Any]]) -> Any:
    """Run a function as the handler of a command."""
    _todo.append(todo)
    return await mesh.call(write)


@pytest.fixture(autouse=True)
def forget_runs() -> None:
    """Each test counts for itself."""
    runs.clear()
    transaction._warned_about.clear()


async def test_fifty_greetings_at_once_count_fifty(backend: Backend) -> None:
    """Reads are guarded without a word about it: nobody's update is lost."""
    mesh = await backend.mesh(greetings)
    await asyncio.gather(*(mesh.call(put, Greet(f"n{n % 5}")) for n in range(50)))
    assert await mesh.call(count) == 50


async def test_what_was_absent_is_guarded_too(backend: Backend) -> None:
    """Two that find nothing do not both create it."""
    mesh = await backend.mesh(table)

    async def first(tx: Transaction) -> bool:
        found = await tx.get(text)
        await asyncio.sleep(0.05)
        if found is None:
            tx.set(text, "mine")
        return found is None

    _todo.append(first)
    assert sorted(await asyncio.gather(mesh.call(write), mesh.call(write))) == [False, True]


@pytest.mark.parametrize("change", ["another field", "another value", "one more", "one less"])
async def test_all_of_a_hash_is_guarded(backend: Backend, change: str) -> None:
    """The commit reads it again; a change of any field runs the handler again."""
    mesh = await backend.mesh(greetings)
    client = backend.redis(mesh.database)
    key = f"db{mesh.database}:greetings:seen"
    await client.hset(key, mapping={"a": "1", "b": "2"})
    asked = asyncio.create_task(mesh.call(census))
    while not runs:
        await asyncio.sleep(0.005)
    match change:
        case "another field":
            await client.hdel(key, "a")
            await client.hset(key, "c", "1")
        case "another value":
            await client.hset(key, "a", "5")
        case "one more":
            await client.hset(key, "c", "5")
        case "one less":
            await client.hdel(key, "b")
    found = await asked
    assert found == {k: int(v) for k, v in (await client.hgetall(key)).items()}
    assert (runs["census"], await mesh.call(count)) == (2, sum(found.values()))
    assert mesh.conflicts() == {key: 1}
    await client.aclose()


@pytest.mark.parametrize("collection", ["names", "ages"])
async def test_a_set_and_a_range_are_guarded(backend: Backend, collection: str) -> None:
    """The handler runs again after a change within the range, and not after one outside it."""
    mesh = await backend.mesh(greetings)
    client = backend.redis(mesh.database)
    prefix = f"db{mesh.database}:greetings:"
    await client.zadd(prefix + "ages", {"ann": 20, "bob": 7})
    await client.sadd(prefix + "names", "ann", "bob")
    asked = asyncio.create_task(mesh.call(adults))
    while not runs:
        await asyncio.sleep(0.005)
    await client.zadd(prefix + "ages", {"bea": 3})
    if collection == "names":
        await client.srem(prefix + "names", "bob")
        await client.sadd(prefix + "names", "cid")
        expected = ["ann", "ann", "cid"]
    else:
        await client.zadd(prefix + "ages", {"bob": 18})
        expected = ["bob", "ann", "ann", "bob"]
    assert await asked == expected
    assert runs["adults"] == 2
    await client.aclose()


async def test_a_collection_that_did_not_change_is_no_conflict(backend: Backend) -> None:
    """The server may list the elements in another order."""
    mesh = await backend.mesh(table)

    async def fill(tx: Transaction) -> None:
        for n in range(600):
            tx.set(points[f"ключ {n}"], n)
            tx.insert(group, f"m {n}")
            tx.put(ranks, {f"m {n}": n / 3})

    async def all_of_it(tx: Transaction) -> list[int]:
        found = [len(await tx.items(points)), len(await tx.members(group)), len(await tx.range(ranks, 0, 150.5))]
        found += [await tx.contains(group, "m 1"), await tx.contains(group, "x")]
        assert await tx.score(ranks, "m 3") == 1.0 and await tx.score(ranks, "x") is None
        assert await tx.range(ranks, 900) == [] and await tx.range(ranks, count=2) == ["m 0", "m 1"]
        tx.set(number, 1)
        return found

    await run(mesh, fill)
    assert await run(mesh, all_of_it) == [600, 600, 452, True, False]
    assert mesh.conflicts() == {}


async def test_a_collection_that_is_too_large_is_refused_where_it_is_read(backend: Backend) -> None:
    """The error says what to do instead; a snapshot reads the collection."""
    mesh = await backend.mesh(table)
    client = backend.redis(mesh.database)
    await client.hset(f"db{mesh.database}:free:points", mapping={str(n): n for n in range(1001)})
    with pytest.raises(GuardTooLarge, match=r"free:points has more than 1000 elements.*tx\.snapshot"):
        await run(mesh, lambda tx: tx.items(points))
    assert len(await run(mesh, lambda tx: tx.snapshot.items(points))) == 1001
    await client.aclose()


async def test_a_snapshot_is_not_guarded(backend: Backend) -> None:
    """What it read may change before the commit."""
    mesh = await backend.mesh(table)
    client = backend.redis(mesh.database)
    began = 0

    async def look(tx: Transaction) -> int:
        nonlocal began
        began += 1
        found = await tx.snapshot.get(number)
        await client.set(f"db{mesh.database}:free:number", found + 7)
        tx.set(text, "x")
        return found

    assert await run(mesh, look) == 0
    assert began == 1
    await client.aclose()


async def test_a_transaction_reads_what_it_has_written(backend: Backend) -> None:
    """A transaction sees its own values, fields and deletions, also fields of a hash that it deleted as a whole."""
    mesh = await backend.mesh(table)

    async def prepare(tx: Transaction) -> None:
        tx.set(points["a"], 1)
        tx.set(points["b"], 2)
        tx.set(text, "old")

    async def look(tx: Transaction) -> list[Any]:
        before = [await tx.get(text), await tx.get(points["a"])]
        tx.set(text, "new")
        tx.delete(points["a"])
        after = [await tx.get(text), *await tx.many([points["a"], points["b"]])]
        tx.delete(text)
        tx.delete(points)
        gone = [await tx.get(text), *await tx.many([points["a"], points["b"]])]
        tx.set(points["c"], 3)
        return [*before, *after, *gone, await tx.get(points["c"]), await tx.get(points["b"])]

    await run(mesh, prepare)
    assert await run(mesh, look) == ["old", 1, "new", None, 2, None, None, None, 3, None]
    assert await run(mesh, lambda tx: tx.items(points)) == {"c": 3}


async def test_a_second_read_shows_what_the_first_one_showed(backend: Backend) -> None:
    """The handler decides on one state, even while it is no longer true."""
    mesh = await backend.mesh(table)
    client = backend.redis(mesh.database)
    began = 0

    async def look(tx: Transaction) -> list[int]:
        nonlocal began
        began += 1
        first = await tx.get(number)
        if began == 1:
            await client.set(f"db{mesh.database}:free:number", 9)
        return [first, await tx.get(number), *await asyncio.gather(tx.get(number), tx.get(number))]

    # The commit checks a command that writes nothing, too.
    assert await run(mesh, look) == [9, 9, 9, 9]
    assert began == 2
    await client.aclose()


async def _add_and_get(tx: Transaction) -> None:
    tx.add(number)
    await tx.get(number)


async def _insert_and_list(tx: Transaction) -> None:
    tx.insert(group, "a")
    await tx.members(group)


async def _set_and_list(tx: Transaction) -> None:
    tx.set(points["a"], 1)
    await tx.items(points)


@pytest.mark.parametrize("todo", [_add_and_get, _insert_and_list, _set_and_list])
async def test_what_only_the_commit_knows_is_not_read(backend: Backend, todo: Any) -> None:
    """The error says what to do, and the transaction has no effect."""
    mesh = await backend.mesh(table)
    with pytest.raises(ReadAfterWrite, match=r"read it (before|first)"):
        await run(mesh, todo)
    assert await run(mesh, lambda tx: tx.get(number)) == 0


async def test_a_field_without_a_name_is_a_field(backend: Backend) -> None:
    """Users may have any name as a field, the empty one too."""
    mesh = await backend.mesh(table)

    async def count_up(tx: Transaction) -> int:
        before = await tx.get(points[""]) or 0
        await asyncio.sleep(0.01)
        tx.set(points[""], before + 1)
        return before + 1

    _todo.append(count_up)
    assert sorted(await asyncio.gather(*(mesh.call(write) for _ in range(3)))) == [1, 2, 3]


async def test_add_meets_no_conflict(backend: Backend) -> None:
    """A hundred at once, without a second run."""
    mesh = await backend.mesh(table)

    async def add(tx: Transaction) -> None:
        tx.add(number, 2)
        tx.add(points["a"])

    _todo.append(add)
    await asyncio.gather(*(mesh.call(write) for _ in range(100)))
    assert await run(mesh, lambda tx: tx.many([number])) == [200]
    assert (await run(mesh, lambda tx: tx.get(points["a"])), mesh.conflicts()) == (100, {})


async def test_shared_state_belongs_to_all_replicas(backend: Backend) -> None:
    """Shared state is guarded between replicas."""
    one, two = [await backend.mesh(table) for _ in range(2)]

    async def add(tx: Transaction) -> None:
        before = await tx.get(common)
        await asyncio.sleep(0.01)
        tx.set(common, before + 1)

    _todo.append(add)
    await asyncio.gather(*(mesh.call(write, to=Database(each.database)) for mesh in (one, two) for each in (one, two)))
    assert await run(two, lambda tx: tx.get(common)) == 4


async def test_a_value_lives_as_long_as_its_ttl(backend: Backend) -> None:
    """The ttl counts from the commit."""
    mesh = await backend.mesh(table)

    async def keep(tx: Transaction) -> None:
        tx.set(text, "x", ttl=timedelta(minutes=5))

    await run(mesh, keep)
    client = backend.redis(mesh.database)
    assert 290_000 < await client.pttl(f"db{mesh.database}:free:text") <= 300_000
    await client.aclose()


async def test_the_time_of_a_request_is_that_of_redis(backend: Backend) -> None:
    """The time is the same in each run of the handler."""
    mesh = await backend.mesh(table)

    async def when(tx: Transaction) -> list[float]:
        return [tx.at.timestamp(), tx.request.at_ms / 1000, tx.request.deliveries]

    at, same, deliveries = await run(mesh, when)
    assert at == same and deliveries == 1
    assert abs(backend.now.timestamp() - at) < 60


async def test_a_query_has_no_way_to_write(backend: Backend) -> None:
    """Neither a method nor an attribute leads to the effects."""
    mesh = await backend.mesh(table)
    found: list[str] = []

    async def look(view: Any) -> None:
        found.extend(name for cls in type(view).__mro__ for name in getattr(cls, "__slots__", ()))
        found.extend(name for name in dir(view) if name in {"set", "add", "delete", "insert", "put", "send", "forward"})
        with pytest.raises(AttributeError):
            view.effects = 1

    _todo.append(look)
    await mesh.call(read)
    assert sorted(found) == ["_store", "request"]


MISTAKES: dict[str, tuple[Callable[[Transaction], Any], str]] = {
    "another type": (lambda tx: tx.set(number, "7"), "free:number: expected int, got str: '7'"),  # type: ignore[misc]
    "a default that is not 0": (lambda tx: tx.add(ten), r"use get\(\) and set\(\)"),
    "a ttl of a field": (lambda tx: tx.set(points["a"], 1, ttl=timedelta(1)), "cannot have a ttl"),
    "a name for a key": (lambda tx: tx.set("number", 1), "not 'number'"),  # type: ignore[arg-type]
    "a hash for a key": (lambda tx: tx.set(points, 1), "takes a value or the field of a hash"),  # type: ignore[arg-type]
    "a name to delete": (lambda tx: tx.delete("number"), "field, hash or set that Operations defined"),  # type: ignore[arg-type]
    "another operation to forward": (lambda tx: tx.forward(read, None, to=Database(1)), r"use send\(\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_in_a_handler_is_told_to_the_caller(backend: Backend, mistake: str) -> None:
    """The caller is told at once what to write instead, and there is no effect."""
    todo, says = MISTAKES[mistake]
    mesh = await backend.mesh(table)

    async def do(tx: Transaction) -> None:
        tx.set(text, "effect")
        todo(tx)

    with pytest.raises(UsageError, match=says):
        await run(mesh, do)
    assert await run(mesh, lambda tx: tx.get(text)) is None
    assert mesh.statistics()["class_crashed"] == 0
    assert issubclass(UsageError, MeshError)


async def test_a_long_guarded_value_is_named_once_in_the_log(backend: Backend) -> None:
    """A long value is compared all the same; each comparison costs the server."""
    mesh = await backend.mesh(table)
    client = backend.redis(mesh.database)
    await client.set(f"db{mesh.database}:free:text", "x" * 70_000)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            assert len(await run(mesh, lambda tx: tx.get(text))) == 70_000
    warned = [line["key"] for line in lines if line["event"] == "guarded value is long"]
    assert warned == ["free:text"]
    await client.aclose()


def test_names_of_one_table_are_its_own() -> None:
    """The keys begin with the name of the table."""
    assert [str(each) for each in (total, seen, seen["a"], names, ages)] == [
        "greetings:total",
        "greetings:seen",
        "greetings:seen a",
        "greetings:names",
        "greetings:ages",
    ]
