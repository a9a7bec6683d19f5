"""What a programmer gets wrong: each mistake is an error at once, and the error says what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from msgspec import Struct

from mesh import (
    Class,
    Database,
    InvalidReply,
    MeshError,
    Operation,
    Operations,
    Query,
    Refused,
    SetupError,
    Tick,
    Transaction,
    Unavailable,
    UsageError,
    connect,
    join,
)
from mesh.testing import MeshKit

table = Operations("wrong")
number = table.value("number", int, 0)
text = table.value("text", str)
pages = table.values("pages", int, str)
ages = table.hash("ages", str, int)
names = table.set("names", str)
ranks = table.sorted_set("ranks", str)

_todo: list[Callable[[Any], Any]] = []
_kept: list[Transaction] = []


class Greet(Struct):
    """A body."""

    name: str


class Odd(Refused, code="wrong.odd"):
    """An error of the program's own."""

    number: int


@table.command
async def write(tx: Transaction) -> int:
    """Do what the test wants."""
    tx.set(text, "effect")
    found = _todo[-1](tx)
    return await found if hasattr(found, "__await__") else found


@table.query
async def read(view: Query) -> int:
    """Do what the test wants."""
    found = _todo[-1](view)
    return await found if hasattr(found, "__await__") else found


@table.query
async def listed(view: Query) -> list[Greet]:
    """Answer something else."""
    return [7]  # type: ignore[list-item]


async def keep(tx: Any) -> int:
    """Leave the transaction behind."""
    _kept.append(tx)
    return 0


def forget(tx: Any) -> Any:
    """Forget to wait."""
    waits = tx.get(number)
    try:
        return tx.set(number, waits)
    finally:
        waits.close()


#: What a handler does, and what its caller is told.
IN_A_HANDLER: list[tuple[Callable[[Any], Any], str]] = [
    (lambda tx: tx.get("number"), "take a value or the field of a hash, not 'number'"),
    (lambda tx: tx.get(ages), "not <Hash wrong:ages>"),
    (lambda tx: tx.get(pages), "not <Values wrong:pages>"),
    (lambda tx: tx.many(number), r"many\(\) takes a list"),
    (lambda tx: tx.many([names]), "not <Set wrong:names>"),
    (lambda tx: tx.items(number), r"items\(\) reads a hash, not <Key wrong:number>"),
    (lambda tx: tx.members(ranks), r"members\(\) reads a set, not <SortedSet wrong:ranks>"),
    (lambda tx: tx.contains(ages, "x"), r"contains\(\) asks a set"),
    (lambda tx: tx.range(names), r"range\(\) reads a sorted set"),
    (lambda tx: tx.range(ranks, "a"), "a range begins at a number, not 'a'"),
    (lambda tx: tx.range(ranks, 0, "b"), "a range ends at a number, not 'b'"),
    (lambda tx: tx.range(ranks, count=-1), "count= is a number of members, not -1"),
    (lambda tx: tx.score(names, "x"), r"score\(\) asks a sorted set"),
    (forget, "expected int, got coroutine: .* write `await`"),
    (lambda tx: tx.set(number, None), "expected int, got NoneType"),
    (lambda tx: tx.set(number, 1, ttl=5), r"such as timedelta\(minutes=5\), not 5"),
    (lambda tx: tx.set(number, 1, ttl=timedelta(0)), "ttl= is a time"),
    (lambda tx: tx.set(number, 1, ttl=timedelta(days=10**8)), "ttl= is a time"),
    (lambda tx: tx.add(text), r"wrong:text is of str; use get\(\) and set\(\)"),
    (lambda tx: tx.add(number, "1"), r"add\(\) adds an integer to wrong:number, not '1'"),
    (lambda tx: tx.add(number, 1.5), "not 1.5"),
    (lambda tx: tx.insert(ranks, "x"), r"insert\(\) is for a set"),
    (lambda tx: tx.insert(names, ["a"]), "a member of wrong:names: expected str, got list"),
    (lambda tx: tx.put(names, {"x": 1}), r"put\(\) is for a sorted set"),
    (lambda tx: tx.put(ranks, ["x"]), r"such as \{member: 1\.5\}, not \['x'\]"),
    (lambda tx: tx.put(ranks, {"x": "y"}), "a score is a number, not 'y'"),
    (lambda tx: tx.put(ranks, {"x": float("nan")}), "a score is a number, not nan"),
    (lambda tx: tx.remove(ages, "x"), r"delete\(\) is for the rest"),
    (lambda tx: tx.send("wrong.read"), "an operation is what"),
    (lambda tx: tx.send(read, to=0), r'a request is sent to Class\("A"\) or Database\(3\), not to 0'),
    (lambda tx: tx.snapshot.set(number, 1), r"set\(\) is not for a query or a snapshot"),
]


async def test_a_mistake_in_a_handler_is_told_to_its_caller() -> None:
    """The caller is told at once, and there is no effect."""
    async with MeshKit(table) as kit:
        for todo, says in IN_A_HANDLER:
            _todo.append(todo)
            with pytest.raises(UsageError, match=says):
                await kit[0].call(write)
        _todo.append(lambda view: view.set(number, 1))
        with pytest.raises(UsageError, match=r"set\(\) is not for a query"):
            await kit[0].call(read)
        assert await kit.read(text, database=1) is None
        assert kit.dead == [] and kit[0].statistics()["class_crashed"] == 0


async def test_what_a_handler_writes_after_it_has_returned_is_an_error_and_no_loss() -> None:
    """A task that it left behind learns of it."""
    async with MeshKit(table) as kit:
        _todo.append(keep)
        await kit[0].call(write)
        for late in (lambda tx: tx.set(number, 1), lambda tx: tx.send(read), lambda tx: tx.insert(names, "x")):
            with pytest.raises(UsageError, match="the transaction is over: its handler has returned"):
                late(_kept[-1])
        with pytest.raises(AttributeError, match="no attribute 'wait'"):
            _kept[-1].wait()  # type: ignore[attr-defined]


async def test_an_answer_that_is_not_of_the_type_fails_its_call_alone() -> None:
    """Errors with facts that are no JSON, replies with other elements; the replica goes on."""

    async def refuse(tx: Any) -> int:
        raise Odd(number=object())

    async with MeshKit(table) as kit:
        _todo.append(refuse)
        with pytest.raises(InvalidReply, match="the handler raised Odd, which cannot be sent"):
            await kit[0].call(write)
        _todo.append(lambda tx: "text")
        with pytest.raises(InvalidReply, match=r"wrong\.write answers int, and its handler returned str: 'text'"):
            await kit[0].call(write)
        with pytest.raises(InvalidReply, match=r"answers list\[.*Greet\], not this: Expected `object`, got `int`"):
            await kit[0].call(listed)
        _todo.append(lambda tx: 1)
        assert await kit[0].call(write) == 1
        assert [c.reply for c in kit.committed] == [1]


async def sometimes(tx: Transaction, body: Greet = Greet("x")) -> None: ...  # noqa: B008 - this is the mistake


async def number_of(tx: Transaction, tick: Tick) -> int: ...  # type: ignore[empty-body]


async def good(tx: Transaction) -> None: ...


def code_of_the_mesh() -> object:
    class Mine(Refused, code="busy"):
        """A code that the mesh has."""

    return Mine


#: What a module does when it is imported.
AT_IMPORT: list[tuple[Callable[[Operations], object], str]] = [
    (lambda t: t.command(sometimes), r"a handler takes \(tx\) or \(tx, body\), without defaults"),
    (lambda t: t.command("name"), "a handler is an `async def` function"),  # type: ignore[call-overload]
    (lambda t: t.command(name=7)(good), "an operation is named by text"),  # type: ignore[call-overload]
    (lambda t: t.command(name="a b")(good), "an operation has a name like"),
    (lambda t: t.every(good), r'write @operations\.every\("0 4 \* \* \*"\)'),  # type: ignore[arg-type]
    (lambda t: t.every("* * * * *")(number_of), "returns None"),  # type: ignore[arg-type]
    (lambda t: t.implements("x.y"), r"write @operations\.implements\(op\)"),
    (lambda t: t.implements(good), r"op = Operation\(name, Body, Reply\), not <function good"),
    (lambda t: t.value("total", int, "0"), "t:total: expected int, got str: '0'"),
    (lambda t: (t.value("n", int, 0), t.value("n", int, 1)), "with the default 0, and cannot be a value of int with"),
    (lambda t: t.value("v", 7), "7 cannot be JSON"),  # type: ignore[call-overload]
    (lambda t: Operation("t.x", Greet("x"), int), "a body is an object with names"),  # type: ignore[arg-type]
    (lambda t: Class("E"), 'a class is "A", "B", "C" or "D", not \'E\''),
    (lambda t: Class(["A"]), "not \\['A'\\]"),  # type: ignore[arg-type]
    (lambda t: Database(16), "a database is a number from 0 to 15, not 16"),
    (lambda t: Database("3"), "not '3'"),  # type: ignore[arg-type]
    (lambda t: Database(True), "not True"),
    (lambda t: write(), r"wrong\.write is called over a mesh: await mesh\.call\(write, \.\.\.\)"),  # type: ignore[operator]
    (lambda t: code_of_the_mesh(), "the code 'busy' belongs to Busy"),
    (lambda t: MeshKit("greetings"), r'MeshKit\(\) take what Operations\("\.\.\."\) returned'),  # type: ignore[arg-type]
    (lambda t: MeshKit(table, replicas="3"), "replicas= is a number of replicas such as 3, not '3'"),  # type: ignore[arg-type]
    (lambda t: MeshKit(table, ttl=3), "MESH_TTL: Extra inputs are not permitted"),
    (lambda t: join(table, settings={"name": "x"}), r"settings are MeshSettings\(\.\.\.\), not"),  # type: ignore[arg-type]
    (lambda t: MeshKit(table)[0], "a kit has replicas only inside its block"),
]


@pytest.mark.parametrize(("mistake", "says"), AT_IMPORT)
def test_a_mistake_at_import_is_an_error_there(mistake: Callable[[Operations], object], says: str) -> None:
    """The error does not wait for the first request."""
    with pytest.raises(UsageError, match=says):
        mistake(Operations("t"))


async def test_settings_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the name that each setting has in the environment, for members, clients and kits."""
    with pytest.raises(SetupError, match="REDIS_URL: the address must begin with redis://"):
        MeshKit(table, redis="localhost")
    monkeypatch.setenv("REDIS_URL", "localhost")
    monkeypatch.setenv("MESH_DEADLINE_MS", "soon")
    for block in (join, connect):
        with pytest.raises(SetupError, match=r"REDIS_URL|MESH_DEADLINE_MS"):
            async with block():
                raise AssertionError


async def test_what_a_kit_does_not_have_is_an_error() -> None:
    """A misspelt operation is not one that never ran."""
    elsewhere = Operation("wrong.elsewhere", Greet, int)
    mistakes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda kit: kit.ran(elsewhere), "no replica of this kit serves 'wrong.elsewhere'"),
        (lambda kit: kit.ran("writ"), "no replica of this kit serves 'writ'"),
        (lambda kit: kit.fail(elsewhere), r"give the kit its operations: MeshKit\(operations\)"),
        (lambda kit: kit.fail(write, before="reply"), 'before= is "handler" or "commit"'),
        (lambda kit: kit[1], "the kit has the replicas 0 to 0, and none of number 1"),
        (lambda kit: kit.freeze(7), "none of number 7"),
        (lambda kit: kit.kill("x"), "none of number 'x'"),
        (lambda kit: kit.advance(hour=1), r"such as advance\(hours=24\)"),
        (lambda kit: kit.advance(hours=-1), "time moves forward only"),
        (lambda kit: kit.read(ages, database=1), r"not <Hash wrong:ages>; see redis\(\)"),
        (lambda kit: kit.connect().call, "was not entered has no 'call'"),
    ]
    async with MeshKit(table) as kit:
        for mistake, says in mistakes:
            with pytest.raises((UsageError, AttributeError), match=says):
                found = mistake(kit)
                await found
        async with kit.connect() as client:
            assert await client.roster()
    for later in (kit.start, lambda: kit.advance(hours=1), lambda: kit.stop(0)):
        with pytest.raises(UsageError, match=re.escape("async with MeshKit(operations) as kit:")):
            await later()
    with pytest.raises(UsageError, match="a kit is for one block"):
        async with kit:
            raise AssertionError
    with pytest.raises(Unavailable, match=r"this client has left the mesh: the block of connect\(\) is over"):
        await client.roster()


def test_all_of_these_are_errors_of_the_mesh() -> None:
    """One `except` finds all of these errors."""
    assert issubclass(UsageError, MeshError) and issubclass(SetupError, MeshError)
