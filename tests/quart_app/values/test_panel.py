"""What an operator sees of jobs, and the act that cancels one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh import Refused, keys
from mesh.dead import Actor
from quart_app.values.jobs import Job, Jobs
from quart_app.values.models import PlainItem
from quart_app.values.panel import JobsPanel, _item, cancel_by_id, cancel_job
from quart_app.values.settings import ValuesSettings
from tests.support.values import HARD, Values, state, until
from tests.support.waiting import eventually

ACTOR = Actor("operator", "192.0.2.1")
PANEL: Any = JobsPanel(ValuesSettings(max_jobs=3))


async def test_unfinished_jobs_come_first(values: Values, jobs: Jobs) -> None:
    """An unfinished job has a bar and an act; a finished one has only the size of its result."""
    (replica,) = await values.join(1)
    empty = await PANEL.read(replica)
    assert (empty.phrase, list(empty.items), empty.figures[2].value) == ("no job in progress", [], "0 bytes")
    slow = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")])
    done = await jobs.begin(replica, [PlainItem("6", 60, "A"), PlainItem("7", 60, "A")])
    values.pool.quick = {6: "2 3", 7: "7"}
    await until(jobs, replica, slow, "running")

    async def shown() -> list[tuple[str, str, str, float]]:
        items = (await PANEL.read(replica)).items
        return [(item.id, item.state, item.act, item.whole) for item in items]

    async def first_waits_for_the_second() -> bool:
        return await shown() == [(slow, "running", "cancel-job", 1), (done, "done", "", 0)]

    values.pool.may_end.set()
    await until(jobs, replica, done, "done")
    await until(jobs, replica, slow, "done")
    assert {each[0] for each in await shown()} == {slow, done}


async def test_an_operator_cancels_a_job(values: Values, jobs: Jobs) -> None:
    """The work ends, its room is free, and the audit log has one entry, also when it is cancelled twice."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")])
    await until(jobs, replica, id, "running")
    panel = await PANEL.read(replica)
    assert panel.phrase == "1 job in progress" and panel.items[0].act == "cancel-job"
    cancelled, again = await asyncio.gather(*(cancel_job(replica.shared, id, ACTOR) for _ in range(2)))
    assert {cancelled is None, again is None} == {True, False}
    assert await state(jobs, replica, id) == "gone"

    async def stopped() -> bool:
        return values.pool.killed == 1

    await eventually(stopped, 10)
    redis: Any = replica.shared
    ((_, entry),) = await redis.xrange(keys.AUDIT)
    assert (entry["event"], entry["actor"], entry["source"], entry["ids"]) == (
        "job cancelled", "operator", "192.0.2.1", id,
    )  # fmt: skip
    assert await redis.get("shared:values:jobs:size") == "0"
    assert (await PANEL.read(replica)).phrase == "no job in progress"


async def test_a_finished_job_keeps_its_result(values: Values, jobs: Jobs) -> None:
    """Nobody loses what was found; the sentence says so. Ids that are none are refused."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem("6", 60, "A")])
    values.pool.may_end.set()
    await until(jobs, replica, id, "done")
    said = await cancel_by_id(replica.shared, id, ACTOR)
    assert said == "The job is finished. Nothing was done; its result is still there."
    assert await state(jobs, replica, id) == "done"
    assert await cancel_by_id(replica.shared, "x" * 22, ACTOR) is None
    with pytest.raises(Refused, match="is not the id of a job"):
        await cancel_by_id(replica.shared, "../" + "x" * 19, ACTOR)


def test_a_job_says_what_its_replicas_do() -> None:
    """A job names the value, the method, the time it has taken and the time that is left."""
    stage = {"value": int("7" * 80), "stage": "curves", "elapsed_s": 24.2, "estimate_s": 181, "replica": "replica-1"}
    job = Job("x", 0, 3_600_000, 4, 1, [stage])
    item = _item(job, 24_000)
    assert (item.state, item.done, item.whole, item.act) == ("running", 3, 4, "cancel-job")
    assert item.lines == [
        "3 of 4 values done, begun 24 s ago, at most 60 min left",
        "77777777…77777777 (80 digits): curves for 24 s, about 3 min left, by replica-1",
    ]
    failed = _item(Job("x", 0, 1000, 4, 1, [stage], failed_count=1), 2000)
    assert (failed.state, failed.bad, failed.whole, failed.act) == ("failed", True, 0, "")
    assert failed.lines == ["2 of 4 values done; 1 value failed, begun 2.0 s ago"]
