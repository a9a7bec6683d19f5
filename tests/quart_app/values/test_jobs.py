"""Jobs: their states, their bound, and what becomes of their work."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mesh import Busy, Class, Replica
from quart_app.values.jobs import PUT, Job, Jobs, Wanted
from quart_app.values.settings import ValuesSettings
from tests.quart_app.values.test_claims import HARD, P, Q, Values
from tests.support.members import Members
from tests.support.waiting import eventually

MINUTE_MS = 60_000


def job(**fields: Any) -> Job:
    """A job of two values, begun at 0, with a minute's time."""
    items = [Wanted("6", 60, "A"), Wanted(str(HARD), 60, "A")]
    defaults: dict[str, Any] = {"found": {}, "failed": {}, "stages": {}}
    return Job("x", 0, MINUTE_MS, [str(HARD), "6", "6"], items, **{**defaults, **fields})


STATES = [
    ("waiting", job(), 10),
    ("running", job(stages={"A": {"stage": "curves"}}), 10),
    ("running", job(found={"6": "2 3"}), 10),
    ("done", job(found={"6": "2 3", str(HARD): f"{P} {Q}"}), 10),
    ("done", job(found={"6": "2 3", str(HARD): f"{P} {Q}"}), 2 * MINUTE_MS),
    ("failed", job(found={"6": "2 3"}, failed={str(HARD): {"detail": "late"}}), 10),
    ("running", job(failed={str(HARD): {"detail": "late"}}, stages={"A": {}}), 10),
    ("failed", job(found={"6": "2 3"}, stages={"A": {}}), MINUTE_MS),
]


@pytest.mark.parametrize(("state", "one", "now_ms"), STATES)
def test_states(state: str, one: Job, now_ms: int) -> None:
    """Done when all is found; failed when something is not, or when its time is over."""
    assert one.state(now_ms) == state
    assert one.view(now_ms)["state"] == state


def test_a_result_has_the_order_that_was_asked_for() -> None:
    """One element for each item of the request, a repeated one repeated."""
    done = job(found={"6": "2 3", str(HARD): f"{P} {Q}"})
    assert done.result(1500) == [(str(HARD), f"{P} {Q}"), ("6", "2 3"), ("6", "2 3")]
    assert done.view(1500)["elapsed_s"] == 1.5


def test_a_failed_job_keeps_what_was_found_and_says_what_was_not() -> None:
    """Nothing that was computed is lost."""
    failed = job(found={"6": "2 3"})
    assert failed.result(MINUTE_MS) == [("6", "2 3")]
    view = failed.view(MINUTE_MS)
    assert [error["value"] for error in view["errors"]] == [HARD]
    assert "time was over" in view["errors"][0]["detail"]


@pytest.fixture
async def values(mesh_of: Members) -> Values:
    return Values(mesh_of)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(ValuesSettings(max_jobs=3))


async def state(jobs: Jobs, replica: Replica, id: str) -> str:
    found = await jobs.get(replica, id)
    return "gone" if found is None else found.state(replica.now_ms())


async def until(jobs: Jobs, replica: Replica, id: str, wanted: str) -> Job | None:
    async def reached() -> bool:
        return await state(jobs, replica, id) == wanted

    await eventually(reached, 15)
    return await jobs.get(replica, id)


async def test_a_job_goes_through_its_values_and_is_patient(values: Values, jobs: Jobs) -> None:
    """Small ones together, each hard one alone, in processes for those that nobody waits for."""
    (replica,) = await values.join(1)
    items = [Wanted(str(value), 60, "A") for value in (6, 10, HARD, 15, 2 * HARD)]
    values.pool.may_end.set()
    id = await jobs.begin(replica, items)
    found = await until(jobs, replica, id, "done")
    assert found is not None
    assert found.found == {
        "6": "2 3", "10": "2 5", str(HARD): f"{P} {Q}", "15": "3 5", str(2 * HARD): f"2 {P} {Q}"
    }  # fmt: skip
    assert found.stages == {}
    assert values.pool.computed == [HARD, 2 * HARD]
    assert values.pool.patient == [True, True]
    assert sorted(await replica.store().hgetall("values:records")) == sorted(found.found)


async def test_a_job_takes_one_place_in_its_queue(values: Values, jobs: Jobs) -> None:
    """However many hard values it has: others get through beside it."""
    (replica,) = await values.join(1, concurrency=2)
    id = await jobs.begin(replica, [Wanted(str(HARD * i), 60, "A") for i in range(1, 30)])
    await until(jobs, replica, id, "running")
    body = {"items": [{"value": "6", "ttl": 60}]}
    assert await replica.call(Class("A"), PUT, body, deadline_ms=3000) == {"6": "2 3"}
    assert values.pool.computed == [HARD]
    await jobs.end(replica, id)


async def test_an_ended_job_stops_and_leaves_nothing(values: Values, jobs: Jobs) -> None:
    """Its computation is killed within a second, no commit brings it back, and what it had not done stays undone."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [Wanted(str(HARD), 60, "A"), Wanted("6", 60, "A")])
    await until(jobs, replica, id, "running")
    assert await jobs.end(replica, id)
    assert not await jobs.end(replica, id)

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
    id = await jobs.begin(replica, [Wanted(str(HARD), 60, "A")])
    await until(jobs, replica, id, "running")
    await jobs.end(replica, id)
    values.pool.may_end.set()

    async def settled() -> bool:
        return replica.statistics()["class_in_progress"] == 0

    await eventually(settled)
    assert await state(jobs, replica, id) == "gone"


async def test_a_job_waits_for_room(values: Values, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy is nothing to tell somebody who does not wait."""
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
    id = await jobs.begin(replica, [Wanted(str(HARD), 60, "A")])
    await until(jobs, replica, id, "done")
    assert refusals == 0


async def test_a_job_of_two_classes_is_worked_at_in_both(values: Values, jobs: Jobs) -> None:
    """Each class has its own place in its own queue."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [Wanted("6", 60, "A"), Wanted("10", 60, "B")])

    async def half() -> bool:
        found = await jobs.get(replica, id)
        return found is not None and found.found == {"6": "2 3"}

    await eventually(half)
    assert await state(jobs, replica, id) == "running"
    # Nobody has class B: its part waits until somebody does.
    assert await replica.shared.xlen("mesh:requests:B") == 1


async def test_there_are_only_so_many_jobs(values: Values, jobs: Jobs) -> None:
    """Beyond them: Busy; one that has ended makes room."""
    (replica,) = await values.join(1)
    ids = [await jobs.begin(replica, [Wanted(str(HARD), 60, "A")]) for _ in range(3)]
    with pytest.raises(Busy):
        await jobs.begin(replica, [Wanted("6", 60, "A")])
    await jobs.end(replica, ids[0])
    assert await jobs.begin(replica, [Wanted("6", 60, "A")])


async def test_a_job_can_be_read_with_redis_cli(values: Values, jobs: Jobs) -> None:
    """Plain names and text, and a time to live."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [Wanted("6", 60, "A")])
    await until(jobs, replica, id, "done")
    fields = await replica.shared.hgetall(f"shared:values:job:{id}")
    assert fields["found:6"] == "2 3"
    assert json.loads(fields["items"]) == [{"value": "6", "ttl": 60, "cls": "A"}]
    assert 3600 * 1000 < await replica.shared.pttl(f"shared:values:job:{id}") <= 7200 * 1000
