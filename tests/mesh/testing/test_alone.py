"""One handler alone: it reads the state that a test gives, and its effects are those of a commit."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from msgspec import Struct

from mesh import Class, Database, InvalidBody, Operation, Operations, Query, Refused, Transaction, UsageError
from mesh.later.due import Due
from mesh.testing import Sent

things = Operations("things")
total = things.value("total", int, 0)
note = things.value("note", str)
seen = things.hash("seen", str, int)
shared = things.value("shared", int, 0, shared=True)
names = things.set("names", str)


class Name(Struct):
    name: str


@dataclasses.dataclass
class Counted:
    total: int
    database: int


@things.command
async def add(tx: Transaction, body: Name) -> Counted:
    tx.set(total, await tx.get(total) + 1)
    tx.set(seen[body.name], (await tx.get(seen[body.name]) or 0) + 1)
    tx.add(shared, 10)
    tx.insert(names, body.name)
    tx.send(add, Name("again"), to=Database(3))
    tx.send(add, Name("later"), to=Class("B"), after=timedelta(minutes=5))
    return Counted(await tx.get(total), tx.database)


@things.command
async def refuse(tx: Transaction) -> None:
    tx.set(total, 1000)
    raise Refused("not today")


@things.query
async def count(view: Query) -> int:
    return await view.get(total) + await view.get(shared)


async def test_it_answers_writes_and_sends() -> None:
    """All that a test of one rule wants to know."""
    done = await add.run(Name("x"), state={total: 3, seen["x"]: 1, shared: 5}, database=7)
    assert done.reply == Counted(4, 7)
    assert (done.read(total), done.read(seen["x"]), done.read(shared), done.read(note)) == (4, 2, 15, None)
    assert done.sent == [
        Sent("things.add", Database(3), {"name": "again"}),
        Sent("things.add", Class("B"), {"name": "later"}, Due("+300000")),
    ]


async def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own variables do not change where the state is."""
    monkeypatch.setenv("REDIS_DB", "3")
    ran = await add.run(Name("ann"), state={shared: 5, total: 1})
    assert (ran.read(shared), ran.read(total), ran.read(shared)) == (15, 2, 15)


async def test_a_query_reads_the_state() -> None:
    """A query reads the state, with a body and without one."""
    assert (await count.run(state={total: 3, shared: 5})).reply == 8
    assert (await count.run()).reply == 0


async def test_what_it_raises_is_raised() -> None:
    """The handler raises an error itself, or the body is none."""
    with pytest.raises(Refused, match="not today"):
        await refuse.run()
    with pytest.raises(InvalidBody):
        await add.run({"name": "x"})  # type: ignore[arg-type]


async def test_what_cannot_be_run_says_why() -> None:
    """An operation of another program cannot be run, and neither can a state that is none."""
    with pytest.raises(UsageError, match="no handler in this program"):
        await Operation("things.elsewhere", Name, Counted).run(Name("x"))
    with pytest.raises(UsageError, match="the keys of state= are values"):
        await count.run(state={names: 1})
