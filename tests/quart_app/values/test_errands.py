"""The work of jobs: step by step, patient, and over soon after the job is."""

from __future__ import annotations

import asyncio

import pytest

from mesh import Busy, Class, Database, MeshError
from quart_app.values.jobs import PUT, Jobs
from quart_app.values.models import PlainItem
from tests.support.values import HARD, P, Q, Values, outcomes, state, until
from tests.support.waiting import eventually


async def test_a_job_goes_through_its_values_and_is_patient(values: Values, jobs: Jobs) -> None:
    """Small ones together, each hard one alone, in processes for those that nobody waits for."""
    (replica,) = await values.join(1)
    items = [PlainItem(str(value), 60, "A") for value in (6, 10, HARD, 15, 2 * HARD)]
    values.pool.may_end.set()
    id = await jobs.begin(replica, items)
    found = await until(jobs, replica, id, "done")
    assert {outcome.value: outcome.factors for outcome in await outcomes(jobs, replica, found)} == {
        "6": "2 3", "10": "2 5", str(HARD): f"{P} {Q}", "15": "3 5", str(2 * HARD): f"2 {P} {Q}"
    }  # fmt: skip
    assert found.stages == []
    assert values.pool.computed == [HARD, 2 * HARD]
    assert values.pool.patient == [True, True]
    assert len(await replica.store().hgetall("values:records")) == 5
    assert not [name for name in await replica.shared.hkeys(f"shared:values:job:{id}") if name.startswith("work:")]


async def test_a_job_takes_one_place_in_its_queue(values: Values, jobs: Jobs) -> None:
    """A job takes one place, however many hard values it has, so others get through beside it."""
    (replica,) = await values.join(1, concurrency=2)
    id = await jobs.begin(replica, [PlainItem(str(HARD * i), 60, "A") for i in range(1, 30)])
    await until(jobs, replica, id, "running")
    body = {"items": [{"value": "6", "ttl": 60}]}
    assert await replica.call(Class("A"), PUT, body, deadline_ms=3000) == {"6": "2 3"}
    assert values.pool.computed == [HARD]
    await jobs.delete(replica, id)


async def test_an_ended_job_stops_and_leaves_nothing(values: Values, jobs: Jobs) -> None:
    """The computation is killed within a second, no commit brings the job back, and the rest stays undone."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A"), PlainItem("6", 60, "A")])
    await until(jobs, replica, id, "running")
    assert await jobs.delete(replica, id)
    assert not await jobs.delete(replica, id)

    async def killed() -> bool:
        return values.pool.killed == 1

    await eventually(killed, 1)

    async def quiet() -> bool:
        return (await replica.books())["in_flight"] == 0

    await eventually(quiet)
    await asyncio.sleep(0.3)
    assert await state(jobs, replica, id) == "gone"
    assert await replica.store().zcard("values:expiry") == 0


async def test_a_job_ended_at_its_commit_is_not_brought_back(values: Values, jobs: Jobs) -> None:
    """The commit expects the job to be there still."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")])
    await until(jobs, replica, id, "running")
    await jobs.delete(replica, id)
    values.pool.may_end.set()

    async def settled() -> bool:
        return replica.statistics()["class_in_progress"] == 0

    await eventually(settled)
    assert await state(jobs, replica, id) == "gone"


async def test_a_job_waits_for_room(values: Values, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the pool is busy, the job tries again instead of failing, because no client waits for it."""
    (replica,) = await values.join(1)
    refusals = 3
    compute = values.pool.factorise

    async def crowded(number: int, timeout_s: float, *, patient: bool = False) -> str:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Busy(retry_after=0.05)
        return await compute(number, timeout_s, patient=patient)

    monkeypatch.setattr(values.pool, "factorise", crowded)
    values.pool.may_end.set()
    id = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")])
    await until(jobs, replica, id, "done")
    assert refusals == 0


async def test_a_job_of_two_classes_is_worked_at_in_both(values: Values, jobs: Jobs) -> None:
    """Each class has its own place in its own queue."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem("6", 60, "A"), PlainItem("10", 60, "B")])

    async def half() -> bool:
        found = await jobs.get(replica, id)
        return found is not None and found.done_count == 1

    await eventually(half)
    assert await state(jobs, replica, id) == "running"
    # Nobody has class B: its part waits until somebody does.
    assert await replica.shared.xlen("mesh:requests:B") == 1


async def test_values_that_fail_are_counted_and_named(
    values: Values, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are done all the same, and the job has an end."""
    (replica,) = await values.join(1)

    async def broken(number: int, timeout_s: float, *, patient: bool = False) -> str:
        raise MeshError("the worker died", value=number, factors=[2])

    monkeypatch.setattr(values.pool, "factorise", broken)
    id = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A"), PlainItem("6", 60, "A")])
    failed = await until(jobs, replica, id, "failed")
    assert (failed.left_count, failed.failed_count, failed.done_count) == (0, 1, 1)
    hard, small = await outcomes(jobs, replica, failed)
    assert small.factors == "2 3"
    assert hard.failure == '{"detail": "the worker died", "factors": [2]}'


async def test_a_part_waits_for_room_with_its_class_and_not_on_a_databases_stream(
    values: Values, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database's stream is worked on in order: every GET would wait behind it."""
    (replica,) = await values.join(1)
    full = True

    def store_room(amount: int) -> None:
        if full:
            raise Busy("Redis is full", retry_after=0.05)

    monkeypatch.setattr(values, "store_room", store_room)
    id = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")])
    part = {"items": [{"value": "6", "ttl": 60}], "job": id}
    transaction = replica.transaction()
    transaction.send(Database(replica.database), PUT, part)
    assert await replica.commit(transaction)

    async def empty() -> bool:
        return await replica.shared.xlen(f"mesh:requests:db{replica.database}") == 0

    await eventually(empty)
    full = False
    values.pool.may_end.set()

    async def found() -> bool:
        return await replica.shared.hget(f"shared:values:job:{id}", "found:6") == "2 3"

    await eventually(found)
