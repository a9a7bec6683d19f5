"""Requests that go to the mesh as one: who shares, who gets which answer, and what one does to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mesh import Busy, GivenUp, Unserved, tracing
from quart_app.values.together import MOST_ID_CHARACTERS, TURNS, Together

DEADLINE_MS = 60_000


class Mesh:
    """Doubles numbers, and notes what it is asked. While `stops` is set, it answers nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.calls: list[str] = []
        self.stops = asyncio.Event()
        self.stops.set()
        self.cancelled = 0
        self.error: Exception | None = None
        #: whether a request for several things never ends
        self.stalls = False
        self.deadlines_ms: list[int] = []

    async def ask(self, key: str, wanted: Sequence[int], deadline_ms: int) -> list[int]:
        self.asked.append((key, [*wanted]))
        self.deadlines_ms.append(deadline_ms)
        self.calls.append(tracing.CALL.get())
        if (trail := tracing.TRAIL.get()) is not None:
            trail.append((key, {"from": "replica-1"}))
        await asyncio.sleep(0)
        try:
            await (asyncio.Event() if self.stalls and len(wanted) > 1 else self.stops).wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None and len(wanted) > 1:
            raise self.error
        return [2 * number for number in wanted]


async def test_those_of_one_turn_and_key_share_a_request() -> None:
    """Each gets its own answer. One that comes after the other waits for no others."""
    mesh = Mesh()
    together = Together(mesh.ask, 16)
    answers = await asyncio.gather(*(together.get(key, n, DEADLINE_MS) for n, key in enumerate("aabaa")))
    assert answers == [0, 2, 4, 6, 8]
    assert await asyncio.gather(*(together.get("a", n, DEADLINE_MS) for n in (5, 6))) == [10, 12]
    assert [await together.get("a", n, DEADLINE_MS) for n in (7, 8)] == [14, 16]
    assert mesh.asked == [("a", [0]), ("a", [1, 3, 4]), ("b", [2]), ("a", [5, 6]), ("a", [7]), ("a", [8])]


async def test_a_request_has_a_bound() -> None:
    """Those beyond it have another one."""
    mesh = Mesh()
    together = Together(mesh.ask, 2)
    assert await asyncio.gather(*(together.get("a", n, DEADLINE_MS) for n in range(6))) == [0, 2, 4, 6, 8, 10]
    assert [wanted for _, wanted in mesh.asked] == [[0], [1, 2], [3, 4], [5]]


async def turns(count: int = 3 * TURNS) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_client_that_goes_takes_nothing_from_the_others() -> None:
    """Only when nobody waits any more, the request ends; one that nobody waits for does not begin."""
    mesh = Mesh()
    mesh.stops.clear()
    together = Together(mesh.ask, 16)
    tasks = [asyncio.create_task(together.get("a", n, DEADLINE_MS)) for n in range(3)]
    await turns()
    tasks[1].cancel()
    await turns()
    assert (mesh.cancelled, tasks[1].done(), tasks[2].done()) == (0, True, False)
    tasks[2].cancel()
    await turns()
    assert mesh.cancelled == 1
    late = asyncio.create_task(together.get("a", 3, DEADLINE_MS))
    await turns(1)
    late.cancel()
    await turns()
    mesh.stops.set()
    assert await tasks[0] == 0
    assert [wanted for _, wanted in mesh.asked] == [[0], [1, 2]]


async def test_one_that_waits_for_long_is_asked_for_alone() -> None:
    """A replica that is stalled keeps nobody who does not need it, and the rest of the time is left."""
    mesh = Mesh()
    mesh.stalls = True
    together = Together(mesh.ask, 16)
    assert await asyncio.gather(*(together.get("a", n, 400) for n in range(3))) == [0, 2, 4]
    assert [wanted for _, wanted in mesh.asked] == [[0], [1, 2], [1], [2]]
    assert mesh.cancelled == 1
    assert all(200 <= left_ms <= 310 for left_ms in mesh.deadlines_ms[2:])


@pytest.mark.parametrize("error", [GivenUp("the handler failed"), Unserved("an earlier release")])
async def test_what_one_of_them_breaks_is_asked_for_alone(error: Exception) -> None:
    """The others get their answers in spite of it."""
    mesh = Mesh()
    mesh.error = error
    together = Together(mesh.ask, 16)
    assert await asyncio.gather(*(together.get("a", n, DEADLINE_MS) for n in range(3))) == [0, 2, 4]
    assert [wanted for _, wanted in mesh.asked] == [[0], [1, 2], [1], [2]]


async def test_another_error_is_the_answer_to_all() -> None:
    """It says something about the mesh, and not about one of them."""
    mesh = Mesh()
    mesh.error = Busy("full")
    together = Together(mesh.ask, 16)
    asked = (together.get("a", n, DEADLINE_MS) for n in range(3))
    assert await asyncio.gather(*asked, return_exceptions=True) == [0, mesh.error, mesh.error]
    assert len(mesh.asked) == 2


async def test_a_shared_request_names_all_calls_and_all_learn_who_answered() -> None:
    """As many calls as fit, and no part of an id."""
    mesh = Mesh()
    together = Together(mesh.ask, 100)
    trails: list[list[object]] = []

    async def call(name: str, number: int) -> int:
        tracing.CALL.set(name)
        trail: list[object] = []
        trails.append(trail)
        tracing.TRAIL.set(trail)  # type: ignore[arg-type]
        return await together.get("a", number, DEADLINE_MS)

    names = [f"call-{n:015}" for n in range(20)]
    await asyncio.gather(*(asyncio.create_task(call(name, n)) for n, name in enumerate(names)))
    assert mesh.calls == [names[0], ",".join(names[1:10])]
    assert len(mesh.calls[1]) <= MOST_ID_CHARACTERS
    assert trails == [[("a", {"from": "replica-1"})]] * 20
    await asyncio.create_task(call("alone", 1))
    assert (mesh.calls[-1], len(trails[-1])) == ("alone", 1)


async def test_a_request_with_a_trace_is_its_own() -> None:
    """A span has one parent."""
    mesh = Mesh()
    together = Together(mesh.ask, 16)

    async def traced(number: int) -> int:
        tracing.TRACEPARENT.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        return await together.get("a", number, DEADLINE_MS)

    assert await asyncio.gather(*(asyncio.create_task(traced(n)) for n in range(3))) == [0, 2, 4]
    assert [wanted for _, wanted in mesh.asked] == [[0], [1], [2]]
