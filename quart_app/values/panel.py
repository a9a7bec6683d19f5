"""What an operator sees of jobs, and how an operator cancels an unfinished job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh import Mesh, Refused, keys
from mesh.dead import Actor
from mesh.raw import Script
from quart_app.panels import (
    Act,
    ActFields,
    ActQuestion,
    Done,
    Panel,
    PanelFigure,
    PanelItem,
    counted,
    data_size,
    duration,
)
from quart_app.values.jobs import FIELDS, JOB, KEPT_BYTES, KEPT_JOBS, UNFINISHED_JOBS, Job
from quart_app.values.settings import ValuesSettings

#: Deletes an unfinished job, and adds an entry to the audit log.
CANCEL = Script.beside(__file__, "cancel_job.lua", "forget_job.lua")
#: The most jobs that are shown: first unfinished ones, then the newest ones.
MOST_SHOWN_JOBS = 20
#: A value with more digits is shortened on the page, so that a line of a job stays on one line.
MOST_SHOWN_DIGITS = 24

#: The form of `secrets.token_urlsafe(16)`, with which `Jobs.begin` makes ids.
_ID = re.compile(r"[\w-]{22}", re.ASCII)
_NO_JOB = "There is no such job: it was deleted, or its time is over."


@dataclass(frozen=True, slots=True)
class CancelledJob:
    """A job that an operator wanted to cancel, as it was before.

    `left_count` of its `value_count` values had neither factors nor an error yet. If `left_count` is 0, the job was
    finished already and was not cancelled: its result is kept.
    """

    value_count: int
    left_count: int

    @property
    def text(self) -> str:
        """Return what the cancellation did, as a sentence."""
        if not self.left_count:
            return "The job is finished. Nothing was done; its result is still there."
        return (
            f"Cancelled with {self.value_count - self.left_count:,} of {counted(self.value_count, 'value')} finished."
        )


async def cancel_job(redis: Redis, id: str, actor: Actor) -> CancelledJob | None:
    """Delete a job unless it is finished. Return None if there is no such job.

    The replicas that work on the job check three times a second whether it exists (`Errand.while_the_job_exists`), so
    the work ends within a second. A job whose deadline has passed counts as failed, but it is deleted, too, if it has
    values without an outcome. `redis` is a client of the bus. Raises Refused if the text cannot be the id of a job.
    """
    if not _ID.fullmatch(id):
        # `mesh cancel` also takes the id of a request, and passes on what does not look like one. So a mistyped id of
        # a request comes here, and the error names both forms.
        raise Refused(f"{id!r:.50} is not the id of a job, nor that of a request such as 1700000000000-0")
    key_names = [*(keys.SHARED + name for name in (JOB + id, KEPT_JOBS, UNFINISHED_JOBS, KEPT_BYTES)), keys.AUDIT]
    counts = await CANCEL.run(redis, key_names, id, actor.name, actor.source, keys.AUDIT_KEPT)
    return CancelledJob(int(counts[0]), int(counts[1])) if counts else None


async def cancel_by_id(redis: Redis, id: str, actor: Actor) -> str | None:
    """Cancel a job for the command `mesh`. Return what was done, as a sentence; None if there is no such job.

    Raises Refused.
    """
    cancelled = await cancel_job(redis, id, actor)
    return cancelled.text if cancelled else None


class JobsPanel:
    """The panel of /values, and its act."""

    def __init__(self, settings: ValuesSettings) -> None:
        self._settings = settings

    async def read(self, mesh: Mesh) -> Panel:
        """Read 20 unfinished jobs and the 20 kept ones that expire last; show 20 of these, unfinished ones first."""
        redis, shared_prefix = mesh.shared, keys.SHARED
        pipeline = redis.pipeline(transaction=False)
        pipeline.zrange(shared_prefix + UNFINISHED_JOBS, 0, MOST_SHOWN_JOBS - 1)
        pipeline.zcard(shared_prefix + UNFINISHED_JOBS)
        pipeline.zrevrange(shared_prefix + KEPT_JOBS, 0, MOST_SHOWN_JOBS - 1)
        pipeline.zcard(shared_prefix + KEPT_JOBS)
        pipeline.get(shared_prefix + KEPT_BYTES)
        open_ids, open_count, newest_members, kept_count, kept_bytes = await pipeline.execute()
        # Many jobs are in both lists, and each is read once. A member of KEPT_JOBS is "{id} {size}".
        ids = list(dict.fromkeys([*open_ids, *(member.partition(" ")[0] for member in newest_members)]))
        jobs = await self._read_jobs(redis, ids)
        now_ms = mesh.now_ms()
        jobs.sort(key=lambda job: (job.is_over(now_ms), -job.created_ms))
        # UNFINISHED_JOBS may still contain a job that has just finished.
        unfinished_count = max(0, open_count - sum(job.is_over(now_ms) for job in jobs if job.id in open_ids))
        settings = self._settings
        return Panel(
            "jobs",
            "Jobs of /values",
            note="factorisations whose result is fetched later",
            phrase=f"{counted(unfinished_count, 'job')} in progress" if unfinished_count else "no job in progress",
            figures=[
                PanelFigure("unfinished", f"{unfinished_count:,}", f"at most {settings.max_jobs:,}"),
                PanelFigure("kept", f"{kept_count:,}", "with those that are finished"),
                PanelFigure("memory", data_size(int(kept_bytes or 0)), f"at most {data_size(settings.jobs_bytes)}"),
            ],
            items=[_item(job, now_ms) for job in jobs[:MOST_SHOWN_JOBS]],
        )

    async def _read_jobs(self, redis: Redis, ids: list[str]) -> list[Job]:
        """Return those jobs that still exist and whose work was sent."""
        pipeline = redis.pipeline(transaction=False)
        for id in ids:
            pipeline.hmget(keys.SHARED + JOB + id, FIELDS)
        jobs = [Job.parse(id, fields) for id, fields in zip(ids, await pipeline.execute(), strict=True)]
        return [job for job in jobs if job is not None]

    @property
    def act(self) -> Act:
        """Return the act that cancels a job. The view "services" offers it, and no word has to be typed for it."""
        return Act("cancel-job", "Cancel the job", "", "services", _ask, _cancel)


async def _ask(mesh: Mesh, fields: ActFields) -> ActQuestion:
    """Return what the operator is asked before the job is cancelled."""
    id = fields.get("id", "")
    job_fields: Any = await mesh.shared.hmget(keys.SHARED + JOB + id, FIELDS) if _ID.fullmatch(id) else None
    job = Job.parse(id, job_fields) if job_fields else None
    explanation = _NO_JOB
    if job is not None:
        explanation = (
            f"Finished so far: {job.value_count - job.left_count:,} of {counted(job.value_count, 'value')}. "
            "The job and its result are deleted, and its work stops within a second; "
            f"GET /jobs/{id} answers 404 from then on."
        )
    return ActQuestion(f"Cancel the job {id:.30}?", explanation, fields)


async def _cancel(mesh: Mesh, fields: ActFields, actor: Actor) -> Done:
    """Cancel the job that the fields name, and return what was done."""
    cancelled = await cancel_job(mesh.shared, fields.get("id", ""), actor)
    if cancelled is None:
        return Done(_NO_JOB, {"changed": False})
    return Done(
        cancelled.text,
        {"changed": bool(cancelled.left_count), "values": cancelled.value_count, "left": cancelled.left_count},
    )


def _item(job: Job, now_ms: int) -> PanelItem:
    """Return a job as the panel shows it."""
    is_over = job.is_over(now_ms)
    begun = f"begun {duration(max(0, now_ms - job.created_ms))} ago"
    time_left = "" if is_over else f", at most {duration(max(0, job.deadline_ms - now_ms))} left"
    failed = f"; {counted(job.failed_count, 'value')} failed" if job.failed_count else ""
    lines = [f"{job.done_count:,} of {counted(job.value_count, 'value')} done{failed}, {begun}{time_left}"]
    state = job.state(now_ms)
    return PanelItem(
        job.id,
        state,
        lines if is_over else lines + [_progress_line(progress) for progress in job.stages],
        done=job.value_count - job.left_count,  # the bar counts failed values, too; the line counts them apart
        whole=0 if is_over else job.value_count,  # 0: the panel draws no bar
        act="" if is_over else "cancel-job",
        bad=state == "failed",
    )


def _progress_line(progress: dict[str, Any]) -> str:
    """Return a line about the work of one class: value, method, times, and the replica.

    `progress` is a field stage:{class} of the job (`Job.stages`). In it, `stage` is the method that is at work.
    """
    value = str(progress.get("value", ""))
    if len(value) > MOST_SHOWN_DIGITS:
        value = f"{value[:8]}…{value[-8:]} ({len(value)} digits)"
    line = f"{value}: {progress.get('stage', '')}"
    if elapsed_s := progress.get("elapsed_s"):
        line += f" for {duration(int(1000 * elapsed_s))}"
        if estimate_s := progress.get("estimate_s"):
            line += f", about {duration(int(1000 * estimate_s))} left"
    return f"{line}, by {progress.get('replica', '')}"
