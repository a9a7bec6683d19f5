"""Jobs: their states, their bounds, and how they are read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mesh import Busy
from quart_app.values.jobs import ADMIT, Gone, Job, Jobs, ValueOutcome, job_bytes
from quart_app.values.models import PlainItem
from quart_app.values.pace import Pace
from quart_app.values.settings import ValuesSettings
from tests.support.beats import Beats
from tests.support.values import HARD, Values, outcomes, state, until
from tests.support.waiting import eventually

MINUTE_MS = 60_000


class OnlyPrepared(Jobs):
    """Jobs that are prepared, and not stored."""

    async def _admit(self, *about: Any) -> int:
        return 1

    async def _store(self, *about: Any) -> None:
        return

    async def _send(self, *about: Any) -> None:
        return


async def test_many_large_jobs_at_once_hold_the_loop_a_piece_at_a_time() -> None:
    """Each looks at ten thousand values several times before it is stored."""
    jobs: Any = OnlyPrepared(ValuesSettings(), Pace())
    items = [PlainItem(str(10**17 + 2 * n), 5, "A") for n in range(10_000)]
    beats = Beats()
    beating = asyncio.create_task(beats.run())
    longest_s = []
    for _ in range(5):  # the first time, Python makes what it keeps; at other times another process may have the core
        beats.longest_s = 0.0
        await asyncio.gather(*(jobs.begin(None, items) for _ in range(24)))
        longest_s.append(beats.longest_s)
    beating.cancel()
    assert 0.001 < min(longest_s) < 0.012


def job(**fields: Any) -> Job:
    """A job of two values, begun at 0, with a minute's time."""
    defaults: dict[str, Any] = {"value_count": 2, "left_count": 2, "stages": []}
    return Job("x", 0, MINUTE_MS, **{**defaults, **fields})


STATES = [
    ("waiting", job(), 10),
    ("running", job(stages=[{"stage": "curves"}]), 10),
    ("running", job(left_count=1), 10),
    ("done", job(left_count=0), 10),
    ("done", job(left_count=0), 2 * MINUTE_MS),
    ("failed", job(left_count=0, failed_count=1), 10),
    ("running", job(left_count=1, failed_count=1), 10),
    ("failed", job(left_count=1), MINUTE_MS),
]


@pytest.mark.parametrize(("state", "one", "now_ms"), STATES)
def test_states(state: str, one: Job, now_ms: int) -> None:
    """Done when all is found; failed when something is not, or when its time is over."""
    assert one.state(now_ms) == state
    assert one.view(now_ms)["state"] == state


ENDS = [
    ("half of it took 2 s", job(left_count=1), 2000, 2.0),
    ("the deadline is before that", job(value_count=10, left_count=9), 50_000, 10.0),
    ("its last values have estimates", job(left_count=2, stages=[{"estimate_s": 3}, {"estimate_s": 7.5}]), 10, 7.5),
    ("only luck can end one of them", job(left_count=2, stages=[{"estimate_s": 3}, {"estimate_s": None}]), 0, 60.0),
    ("nothing is known", job(), 20_000, 40.0),
    ("its time is over", job(), 2 * MINUTE_MS, 0.0),
]


@pytest.mark.parametrize(("why", "one", "now_ms", "expected_s"), ENDS, ids=[end[0] for end in ENDS])
def test_when_a_job_is_expected_to_end(why: str, one: Job, now_ms: int, expected_s: float) -> None:
    """Whoever finds no room is told when the first job ends; no constant."""
    assert one.ends_in_s(now_ms) == expected_s


def test_a_view_counts_what_is_done() -> None:
    """Failures are not done; what the job works on is only shown while it works."""
    view = job(value_count=5, left_count=1, failed_count=1, stages=[{"stage": "sieve"}]).view(1500)
    assert (view["values"], view["values_done"], view["elapsed_s"]) == (5, 3, 1.5)
    assert view["working_on"] == [{"stage": "sieve"}]
    assert "working_on" not in job(left_count=0).view(1500)


async def test_a_result_has_the_order_that_was_asked_for(values: Values, jobs: Jobs) -> None:
    """There is one outcome for each item, repeated items included, however many parts that takes."""
    (replica,) = await values.join(1)
    asked = [str(15 + n % 7) for n in range(250)]
    id = await jobs.begin(replica, [PlainItem(value, 60, "A") for value in asked])
    done = await until(jobs, replica, id, "done")
    assert (done.value_count, done.part_count) == (7, 3)
    found = await outcomes(jobs, replica, done)
    assert [outcome.value for outcome in found] == asked
    assert found[0] == ValueOutcome("15", "3 5", None)


async def test_a_failed_job_keeps_what_was_found_and_says_what_was_not(values: Values) -> None:
    """Nothing that was computed before the failure is lost."""
    (replica,) = await values.join(1)
    jobs = Jobs(ValuesSettings(job_s=1), Pace())
    id = await jobs.begin(replica, [PlainItem("6", 60, "A"), PlainItem(str(HARD), 60, "A")])
    failed = await until(jobs, replica, id, "failed")
    found = {outcome.value: outcome for outcome in await outcomes(jobs, replica, failed)}
    assert found["6"] == ValueOutcome("6", "2 3", None)
    assert found[str(HARD)].factors is None


async def test_a_job_that_is_deleted_while_it_is_read_is_gone(values: Values, jobs: Jobs) -> None:
    """No result ends in the middle as if it were complete."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem(str(n), 60, "A") for n in range(2, 152)])
    parts = jobs.outcomes(replica, await until(jobs, replica, id, "done"))
    assert len(await anext(parts)) == 100
    await jobs.delete(replica, id)
    with pytest.raises(Gone):
        await anext(parts)


async def test_there_are_only_so_many_unfinished_jobs(values: Values, jobs: Jobs) -> None:
    """A further job is Busy, with the time until the first one ends; a deleted one makes room."""
    (replica,) = await values.join(1)
    ids = [await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")]) for _ in range(3)]
    with pytest.raises(Busy, match="3 jobs are in progress") as refused:
        await jobs.begin(replica, [PlainItem("6", 60, "A")])
    assert refused.value.retry_after is not None and 3590 < refused.value.retry_after <= 3600
    await jobs.delete(replica, ids[0])
    assert await jobs.begin(replica, [PlainItem("6", 60, "A")])


async def test_finished_jobs_take_no_place(values: Values, jobs: Jobs) -> None:
    """The results of a finished job are kept for an hour, and nobody waits for that."""
    (replica,) = await values.join(1)
    ids = []
    for n in range(10):
        ids.append(await jobs.begin(replica, [PlainItem(str(n + 2), 60, "A")]))
        await until(jobs, replica, ids[-1], "done")
    assert [await state(jobs, replica, id) for id in ids] == ["done"] * 10
    assert await replica.shared.zcard("shared:values:jobs") == 10


async def test_all_jobs_together_have_a_bound_of_bytes(values: Values) -> None:
    """Kept results count; beyond the bound: Busy, until enough has expired or was deleted."""
    (replica,) = await values.join(1)
    items = [PlainItem(str(n), 60, "A") for n in range(2, 12)]
    jobs = Jobs(ValuesSettings(jobs_bytes=3 * job_bytes(items)), Pace())
    ids = [await jobs.begin(replica, items) for _ in range(3)]
    await until(jobs, replica, ids[2], "done")
    with pytest.raises(Busy, match="DELETE those that you have read") as refused:
        await jobs.begin(replica, items)
    assert refused.value.retry_after is not None and 7190 < refused.value.retry_after <= 7200
    await jobs.delete(replica, ids[1])
    ids.append(await jobs.begin(replica, items))
    for id in ids:
        await jobs.delete(replica, id)
    assert int(await replica.shared.get("shared:values:jobs:size")) == 0
    assert await replica.shared.exists("shared:values:jobs", "shared:values:jobs:open") == 0


async def test_expired_jobs_make_room(values: Values) -> None:
    """Room is made also where nobody has asked for them; a job larger than the bound is taken when it is alone."""
    (replica,) = await values.join(1)
    jobs = Jobs(ValuesSettings(jobs_bytes=1024, job_s=1, job_kept_s=1), Pace())
    items = [PlainItem(str(n), 60, "A") for n in range(2, 12)]
    id = await jobs.begin(replica, items)
    with pytest.raises(Busy):
        await jobs.begin(replica, items)

    async def gone() -> bool:
        return await state(jobs, replica, id) == "gone"

    await eventually(gone, 5)
    assert await jobs.begin(replica, items)
    assert int(await replica.shared.get("shared:values:jobs:size")) == job_bytes(items)


async def test_a_job_whose_replica_dies_between_the_two_steps_leaves_nothing(
    values: Values, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job was stored, and its work was not sent: soon its place and its bytes are free."""
    (replica,) = await values.join(1)
    monkeypatch.setattr("quart_app.values.jobs.UNSENT_JOB_MS", 300)

    async def die(*_: Any) -> bool:
        raise asyncio.CancelledError

    with monkeypatch.context() as dying:
        dying.setattr(replica, "commit", die)
        for _ in range(3):
            with pytest.raises(asyncio.CancelledError):
                await jobs.begin(replica, [PlainItem(str(HARD), 60, "A")])
    with pytest.raises(Busy):
        await jobs.begin(replica, [PlainItem("6", 60, "A")])
    ids = await replica.shared.zrange("shared:values:jobs:open", 0, -1)
    await asyncio.sleep(0.4)
    names = ["jobs", "jobs:open", "jobs:size", *(f"job:{id}" for id in ids)]
    assert len(ids) == 3 and await replica.shared.exists(*(f"shared:values:{name}" for name in names)) == 0
    id = await jobs.begin(replica, [PlainItem("6", 60, "A")])
    await until(jobs, replica, id, "done")


async def test_a_job_that_is_admitted_twice_is_one(values: Values, jobs: Jobs) -> None:
    """The link sends a command again when its answer was lost."""
    (replica,) = await values.join(1)
    words = ["x", 500, 3, 10_000, 10_000, "values", 1, "left", 1]
    names = ["values:job:x", "values:jobs", "values:jobs:open", "values:jobs:size"]
    first = await replica.store().shared.script(ADMIT, names, *words)
    assert await replica.store().shared.script(ADMIT, names, *words) == first
    assert int(await replica.shared.get("shared:values:jobs:size")) == 500


async def test_a_job_can_be_read_with_redis_cli(values: Values, jobs: Jobs) -> None:
    """Plain names and text, and a time to live."""
    (replica,) = await values.join(1)
    id = await jobs.begin(replica, [PlainItem("6", 60, "A")])
    await until(jobs, replica, id, "done")
    fields = await replica.shared.hgetall(f"shared:values:job:{id}")
    assert (fields["order:0"], fields["found:6"], fields["left"]) == ("6", "2 3", "0")
    for key in (f"job:{id}", "jobs", "jobs:open", "jobs:size"):
        assert 3600 * 1000 < await replica.shared.pttl(f"shared:values:{key}") <= 7200 * 1000


async def test_begin_and_steps_share_the_event_loop(values: Values) -> None:
    """The texts of many values are made in pieces, and a step reads its own work only."""
    (replica,) = await values.join(1)
    pace = CountedPace()
    jobs = Jobs(ValuesSettings(), pace)
    id = await jobs.begin(replica, [PlainItem(str(2**64 + n), 60, "A") for n in range(5000)])
    assert pace.turns > 100
    fields = await replica.shared.hgetall(f"shared:values:job:{id}")
    assert json.loads(fields["work:A:4999"]) == [{"value": str(2**64 + 4999), "ttl": 60}]
    assert max(map(len, fields.values())) < 20_000
    await jobs.delete(replica, id)


class CountedPace(Pace):
    """A pace that counts the pieces of work."""

    turns = 0

    async def __call__(self) -> None:
        self.turns += 1
        await super().__call__()
