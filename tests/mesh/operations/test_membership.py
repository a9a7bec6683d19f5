"""`join` with typed operations, and what its `Mesh` knows."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import Class, MeshError, Operations, Paused, UsageError, join
from mesh.operations.membership import worker_of
from mesh.raw import Worker
from tests.support.backend import Backend
from tests.support.greetings import Greet, count, greetings, put, tell
from tests.support.waiting import eventually


async def test_what_nobody_waits_for_happens_all_the_same(backend: Backend) -> None:
    """The mesh sends one request, and a handler sends one with its commit."""
    mesh = await backend.mesh(greetings)
    await mesh.send(put, Greet("a"))
    await mesh.call(tell, Greet("b"))

    async def both() -> bool:
        return await mesh.call(count) == 2

    await eventually(both)


async def test_a_member_pauses_an_operation_and_lets_it_go_on(backend: Backend) -> None:
    """The operation is given by value or by name; the user of the replica has the right."""
    mesh = await backend.mesh(greetings)
    assert await mesh.pause(put) and not await mesh.pause("greetings.put")

    async def refused() -> bool:
        try:
            await mesh.call(put, Greet("a"))
        except Paused:
            return True
        return False

    await eventually(refused)
    await mesh.send(put, Greet("b"))

    async def parked() -> bool:
        return (await mesh.books())["waiting"] == 1

    await eventually(parked)
    before = await mesh.call(count)
    assert await mesh.resume("greetings.put") and not await mesh.resume(put)

    async def done() -> bool:
        return await mesh.call(count) == before + 1

    await eventually(done)


async def test_a_mistake_in_a_handler_reaches_the_caller_as_itself(backend: Backend) -> None:
    """The handler is not tried again."""
    mesh = await backend.mesh(greetings)
    with pytest.raises(UsageError, match=r'a request is sent to Class\("A"\) or Database\(3\), not to \'A\''):
        await mesh.call(tell, Greet("mistake"))
    assert mesh.statistics()["class_crashed"] == 0


async def test_operations_of_both_levels_serve_beside_each_other(backend: Backend) -> None:
    """A table of the level below is given to `join` as it is."""
    raw = Worker()

    @raw.handles("raw.echo")
    async def echo(request: Any, store: Any, transaction: Any) -> dict[str, Any]:
        return {"said": request.body["say"]}

    mesh = await backend.mesh(greetings, raw)
    assert await mesh.replica.call(Class(mesh.cls), "raw.echo", {"say": "x"}) == {"said": "x"}
    assert await mesh.call(count) == 0
    assert (await mesh.roster())[0].database == mesh.database and mesh.trusted and mesh.reachable


def test_two_tables_with_one_operation_are_refused() -> None:
    """The refusal comes before anything is joined."""
    with pytest.raises(UsageError, match="has a handler already"):
        worker_of([greetings, greetings])


async def test_only_tables_are_joined() -> None:
    """A name, a function or an operation is not one."""
    wrong: Any
    for wrong in ("greetings", put, join):
        with pytest.raises(UsageError, match=r"join\(\) and MeshKit\(\) take what Operations"):
            async with join(wrong):
                raise AssertionError
    assert issubclass(UsageError, MeshError) and Operations("x").worker.operations == []
