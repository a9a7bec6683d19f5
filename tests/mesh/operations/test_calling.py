"""Calls, parts and gathers by value, and what is wrong with a call."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mesh import (
    Class,
    Database,
    Incomplete,
    InvalidBody,
    InvalidReply,
    ManyParts,
    Mesh,
    MeshError,
    Operation,
    Operations,
    Query,
    Refused,
    UsageError,
)
from tests.support.backend import Backend
from tests.support.greetings import (
    Birthday,
    Greet,
    Greeted,
    NameTaken,
    Person,
    birthday,
    contract,
    count,
    greetings,
    put,
    spread,
    take,
    wrong,
)


async def test_a_call_returns_the_type_that_the_operation_answers(backend: Backend) -> None:
    """Structs, pydantic models and dataclasses, each at both ends."""
    mesh = await backend.mesh(greetings)
    assert await mesh.call(put, Greet("world")) == Greeted("hello world", 1)
    assert await mesh.call(put, Greet("world"), to=Database(mesh.database)) == Greeted("hello world", 2)
    assert await mesh.call(birthday, Birthday(name="ann", age=7)) == Person("ann", 0)
    assert await mesh.call(birthday, Birthday(name="ann", age=8)) == Person("ann", 7)
    assert await mesh.call(count) == 2
    assert await mesh.call(contract, Greet("a")) == Greeted("a", 1)


async def test_a_contract_without_code_calls_what_another_program_serves(backend: Backend) -> None:
    """The two programs share only the name and the types."""
    mesh = await backend.mesh(greetings)
    assert await mesh.call(Operation("greetings.put", Greet, Greeted), Greet("x")) == Greeted("hello x", 1)
    with pytest.raises(InvalidReply, match=r"greetings\.put answers int"):
        await mesh.call(Operation("greetings.put", Greet, int), Greet("x"))


async def test_an_invalid_body_is_refused_once_and_says_where(backend: Backend) -> None:
    """The failure is the caller's: there is no second delivery and no dead letter."""
    mesh = await backend.mesh(greetings)
    with pytest.raises(InvalidBody, match=r"the body of greetings\.put is not a Greet") as caught:
        await mesh.replica.call(Class(mesh.cls), "greetings.put", {"name": 7})
    assert caught.value.path == "$.name"
    assert mesh.statistics()["class_crashed"] == mesh.statistics()["class_buried"] == 0
    books = await mesh.books()
    assert (books["accepted"], books["answered"]) == (1, 1)


async def test_a_query_takes_a_body_and_refuses_a_wrong_one(backend: Backend) -> None:
    """As a command does."""
    table = Operations("visits")

    @table.query
    async def times(view: Query, body: Greet) -> str:
        return f"{body.name} came"

    mesh = await backend.mesh(table)
    assert await mesh.call(times, Greet("ann")) == "ann came"
    with pytest.raises(InvalidBody, match=r"the body of visits\.times is not a Greet"):
        await mesh.replica.call(Class(mesh.cls), "visits.times", {"name": 7})
    assert mesh.statistics()["class_crashed"] == 0


async def test_a_reply_of_another_type_is_an_error_that_has_no_effect(backend: Backend) -> None:
    """The handler wrote, and then returned what it may not."""
    mesh = await backend.mesh(greetings)
    with pytest.raises(InvalidReply, match="answers int, and its handler returned str: 'seven'"):
        await mesh.call(wrong)
    assert await mesh.call(count) == 0


async def test_a_programs_own_error_arrives_as_itself(backend: Backend) -> None:
    """The error has its facts, in their types."""
    mesh = await backend.mesh(greetings)
    await mesh.call(take, Greet("ann"))
    with pytest.raises(NameTaken, match="Somebody else has this name") as caught:
        await mesh.call(take, Greet("ann"))
    assert (caught.value.name, caught.value.ages) == ("ann", (1, 2))


async def test_a_gather_returns_the_replies_by_database(backend: Backend) -> None:
    """Each is what the operation answers."""
    one, two = [await backend.mesh(greetings) for _ in range(2)]
    await one.call(put, Greet("a"), to=Database(two.database))
    assert await one.gather(count) == {one.database: 0, two.database: 1}
    backend.freeze(1)
    with pytest.raises(Incomplete) as caught:
        await one.gather(count, deadline=timedelta(milliseconds=300))
    assert (caught.value.partial, caught.value.missing) == ({one.database: 0}, [two.database])


async def test_parts_are_for_requests_that_are_passed_on(backend: Backend) -> None:
    """`call` has one reply; a handler that passes all of it on has no part."""
    one, _ = [await backend.mesh(greetings) for _ in range(2)]
    here = Database(one.database)
    parts = await one.parts(spread, Greet("half"), to=here)
    assert sorted(part.times for part in parts if part) == [1, 2]
    with pytest.raises(ManyParts, match=r"answered in 2 parts; use mesh\.parts\(\)"):
        await one.call(spread, Greet("half"), to=here)
    assert await one.call(spread, Greet("whole"), to=here) == Greeted("whole", 2)


MISTAKES: dict[str, tuple[Any, type[MeshError], str]] = {
    "a string for an address": (lambda m: m.call(put, Greet("a"), to="A"), UsageError, r'Class\("A"\) or D'),
    "a list for a body": (lambda m: m.call(put, [1]), InvalidBody, r"write Greet\(\.\.\.\)"),
    "no body": (lambda m: m.call(put), InvalidBody, "and there is none"),
    "a name for an operation": (lambda m: m.call("put", Greet("a")), UsageError, r"Operation\(name, B"),
    "a function for an operation": (lambda m: m.call(put.handler, Greet("a")), UsageError, "@operations.command"),
    "a number for a deadline": (lambda m: m.call(put, Greet("a"), deadline=5), UsageError, "write timedelta"),
    "a deadline that is over": (lambda m: m.call(put, Greet("a"), deadline=timedelta()), UsageError, "from now on"),
    "an unknown operation": (
        lambda m: m.call(Operation("greetings.pat", Greet, Greeted), Greet("a")),
        Refused,
        "did you mean 'greetings.put'",
    ),
    "a string for the address of a send": (lambda m: m.send(put, Greet("a"), to="A"), UsageError, "not to 'A'"),
    "a list for the body of a gather": (lambda m: m.gather(put, [1]), InvalidBody, "not list"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_public_mistake_says_what_to_write_instead(backend: Backend, mistake: str) -> None:
    """Each raises a MeshError at the caller, at once."""
    call, error, says = MISTAKES[mistake]
    mesh: Mesh = await backend.mesh(greetings)
    with pytest.raises(error, match=says):
        await call(mesh)
