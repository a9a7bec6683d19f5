"""What became of a request."""

from __future__ import annotations

import asyncio

import pytest

from mesh import Class, GivenUp, Refused, keys
from mesh.control.journeys import Journeys, JourneyStep, grouped, percentile_ms
from mesh.raw import Ask, Body, Effects, Replica, Request, Store, Worker
from mesh.requests.tracing import CALL
from tests.support.backend import Backend


def worker_of_all_kinds(gate: asyncio.Event) -> Worker:
    worker = Worker()

    @worker.handles("x.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        await asyncio.sleep(0.03)
        return {}

    @worker.handles("x.refuse")
    async def refuse(request: Request, store: Store, transaction: Effects) -> Body:
        raise Refused("not today")

    @worker.handles("x.fail")
    async def fail(request: Request, store: Store, transaction: Effects) -> Body:
        raise ValueError("poison")

    @worker.handles("x.wait")
    async def wait(request: Request, store: Store, transaction: Effects) -> Body:
        await gate.wait()
        return {}

    return worker


def journeys(backend: Backend, one: Replica) -> Journeys:
    return Journeys(backend.redis(), one.settings)


async def test_an_answered_request_is_found_by_call_name_and_id(backend: Backend) -> None:
    """What is found says when the request was accepted and answered, who worked, and for how long."""
    one = await backend.join(worker_of_all_kinds(asyncio.Event()))
    CALL.set("req-1")
    await one.call(Class(one.cls), "x.put", {})
    CALL.set("")
    with pytest.raises(Refused):
        await one.call(Class(one.cls), "x.refuse", {})
    look = journeys(backend, one)
    (step,) = await look.find("req-1")
    assert (step.op, step.status, step.worker, step.database) == ("x.put", "ok", one.id, str(one.database))
    assert step.took_us >= 30_000 and 30 <= step.total_ms < 5000
    assert await look.find(step.key) == await look.find(step.id) == [step]
    assert [each.status for each in await look.newest(10)] == ["refused", "ok"]
    assert await look.find("nothing") == []


async def test_a_gather_is_one_journey_with_a_lane_for_each_database(backend: Backend) -> None:
    """Any of its parts finds the whole gather."""
    worker = worker_of_all_kinds(asyncio.Event())
    one, two = await backend.join(worker), await backend.join(worker)
    await one.gather("x.put", {})
    look = journeys(backend, one)
    newest = await look.newest(10)
    (lane,) = grouped(newest)
    assert {step.database for step in lane} == {str(one.database), str(two.database)}
    assert {step.stream for step in lane} == {keys.database_requests(each.database) for each in (one, two)}
    for part in (lane[0].key, lane[0].id, lane[0].group):
        assert len(await look.find(part)) == 2


async def test_a_request_that_waits_is_in_hand_or_given_up_is_found(backend: Backend) -> None:
    """A request is found on its stream, and among the dead letters."""
    gate = asyncio.Event()
    one = await backend.join(worker_of_all_kinds(gate), claim_idle_ms=200)
    look = journeys(backend, one)
    asked = asyncio.create_task(one.call(Class(one.cls), "x.wait", {}))
    async with asyncio.timeout(5):
        while not (found := await look.find(f"{one.id}-1")) or found[0].status != "in hand":
            await asyncio.sleep(0.01)
    assert (found[0].worker, found[0].stream, found[0].total_ms) == (one.id, keys.class_requests(one.cls), 0)
    gate.set()
    await asked
    await one._calls.send(Ask(Class(one.cls), "x.put", {}))
    with pytest.raises(GivenUp):
        await one.call(Class(one.cls), "x.fail", {})
    statuses = {step.status: step for step in await look.find(f"{one.id}-2")}
    assert statuses.keys() == {"given up", "given-up"}
    assert "poison" in statuses["given up"].reason and statuses["given up"].id == statuses["given-up"].id


def test_times_that_are_not_known_are_not_made_up() -> None:
    """A reply of an older release has no `asked`."""
    step = JourneyStep(key="r-1", op="x", status="ok", stream="", id="", sender="r", answered_ms=5)
    assert (step.total_ms, step.group) == (0, "r-1")


def test_times_are_of_the_answers_that_tell_them() -> None:
    """A time that is not known is not taken for zero, and an unanswered request has none."""

    def step(accepted_ms: int, answered_ms: int) -> JourneyStep:
        times = {"accepted_ms": accepted_ms, "answered_ms": answered_ms}
        return JourneyStep(key="r-1", op="x", status="ok", stream="", id="", sender="r", **times)  # type: ignore[arg-type]

    unknown = [step(0, 5), step(1000, 0)]
    assert percentile_ms(unknown, 50) is None
    known = [step(1000, 1000 + number) for number in range(200, 0, -1)]
    assert [percentile_ms([*unknown, *known], percent) for percent in (50, 99, 100)] == [101, 199, 200]
