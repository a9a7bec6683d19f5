"""The operations of a running mesh, as an operator sees them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mesh import Class, Limit, Mesh, MeshSettings, Operations, Query, Transaction, keys
from mesh.control import Control, JourneyStep, OperationStates, operations, read_states
from mesh.dead import Actor
from tests.support.backend import Backend

OPERATOR = Actor("ann", "a test")


class Work:
    """A table whose command waits until it may go on."""

    def __init__(self) -> None:
        self.table = Operations("work")
        self.go_on = asyncio.Event()

        @self.table.command(limit=Limit(concurrency=100))
        async def do(tx: Transaction) -> None:
            """Do some work."""
            await self.go_on.wait()

        @self.table.query
        async def look(view: Query) -> int:
            return 1

        self.do, self.look = do, look


async def seen(backend: Backend, mesh: Mesh, op: str, **numbers: int) -> OperationStates:
    """Wait until an operation has these numbers."""
    found = OperationStates()
    async with asyncio.timeout(10):
        while any(getattr(found.get_or_add(op), name) != number for name, number in numbers.items()):
            await asyncio.sleep(0.05)
            found = await read_states(mesh.shared, backend.settings, [])
    return found


async def published(backend: Backend, work: Work) -> Mesh:
    """Let a member join, and wait until `mesh:operations` has what it serves."""
    mesh = await backend.mesh(work.table)
    async with asyncio.timeout(10):
        while not await mesh.shared.hlen(keys.OPERATIONS):
            await asyncio.sleep(0.05)
    return mesh


async def put_by_hand(mesh: Mesh, number: int) -> None:
    """Put requests on the stream of a class that no replica has."""
    entry: dict[Any, Any] = {"op": "gone.put", "request": "r", "body": "x" * 10}
    async with mesh.shared.pipeline(transaction=True) as pipeline:
        for _ in range(number):
            pipeline.xadd(keys.class_requests("D"), entry)
        pipeline.hincrby(keys.BOOKS, "accepted", number)
        await pipeline.execute()


async def test_operations_are_told_with_their_replicas_and_requests(backend: Backend) -> None:
    """What waits on a stream, what is worked on, what waits for its time, and what is paused."""
    work = Work()
    one = Mesh(await backend.join(work.table.worker, class_="A", concurrency=2))
    two = Mesh(await backend.join(Operations("other").worker, class_="B"))
    for _ in range(5):
        await one.send(work.do)
    for hours in range(1, 4):
        await two.send(work.do, after=timedelta(hours=hours))
    await two.send(work.look, to=Class("B"))
    await Control(two.shared, backend.settings).pause("work.look", OPERATOR)
    found = await seen(backend, two, "work.do", waits=3, runs=2, later=3)
    assert found.complete
    do, look = found.by_name["work.do"], found.by_name["work.look"]
    assert (do.kind, do.definition["summary"], do.served_by) == ("command", "Do some work.", {one.database: one.id})
    assert (do.paused, do.limit, look.limit) == (None, "100 at once", "")
    assert (look.kind, look.waits + look.runs) == ("query", 0)
    assert look.paused is not None and look.paused.actor == "ann"
    work.go_on.set()
    await seen(backend, two, "work.do", waits=0, runs=0, later=3)


async def test_what_nobody_serves_is_told_while_it_has_requests(backend: Backend) -> None:
    mesh = await backend.mesh(Operations("other"))
    await put_by_hand(mesh, 1)
    found = await read_states(mesh.shared, backend.settings, [])
    assert found.by_name.keys() == {"gone.put"}
    gone = found.by_name["gone.put"]
    assert (gone.kind, gone.served_by, gone.waits) == ("", {}, 1)


@pytest.mark.parametrize(("name", "bound"), [("MOST_COUNTED", 10), ("MOST_BYTES", 100)])
async def test_the_work_of_counting_is_bounded(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str, bound: int
) -> None:
    """Counting stops at a number of entries and of bytes, and then says that there are more."""
    monkeypatch.setattr(operations, name, bound)
    mesh = await backend.mesh(Operations("other"))
    await put_by_hand(mesh, 100)
    found = await read_states(mesh.shared, backend.settings, [])
    assert not found.complete
    assert 10 <= found.by_name["gone.put"].waits <= 16


@pytest.mark.parametrize(("waiting", "complete"), [(3, True), (4, False)])
async def test_what_waits_for_its_time_is_counted_up_to_the_bound(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, waiting: int, complete: bool
) -> None:
    """One more is not counted, and the answer says that there are more."""
    monkeypatch.setattr(operations, "MOST_COUNTED", 3)
    work = Work()
    mesh = await backend.mesh(work.table)
    for hours in range(1, waiting + 1):
        await mesh.send(work.do, after=timedelta(hours=hours))
    found = await read_states(mesh.shared, backend.settings, [])
    assert (found.get_or_add("work.do").later, found.complete) == (3, complete)


async def test_a_mesh_without_replicas_has_no_operations_of_its_own(backend: Backend) -> None:
    mesh = await backend.mesh(Operations("other"))
    assert (await read_states(mesh.shared, MeshSettings(), [])).by_name == {}


def answer(op: str, status: str = "ok") -> JourneyStep:
    return JourneyStep(key="r-1", op=op, status=status, stream="", id="1000-0", sender="r")


async def test_answers_belong_to_their_operations(backend: Backend) -> None:
    """An operation that nobody serves any more keeps its answers."""
    mesh = await published(backend, Work())
    answers = [answer("work.do"), answer("gone.put", "refused"), answer("work.do")]
    found = await read_states(mesh.shared, backend.settings, answers)
    assert [(state.op, len(state.answers), state.failed) for state in found.in_order()] == [
        ("gone.put", 1, 1), ("work.do", 2, 0), ("work.look", 0, 0),
    ]  # fmt: skip


async def test_what_is_no_definition_hides_nothing(backend: Backend) -> None:
    """Anybody with access to Redis may write it."""
    mesh = await published(backend, Work())
    await mesh.shared.hset(keys.OPERATIONS, mapping={"bad.text": "{", "bad.list": "[]"})
    assert (await read_states(mesh.shared, backend.settings, [])).by_name.keys() == {"work.do", "work.look"}
