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
from quart_app.values.jobs import FIELDS, JOB, KEPT, OPEN, SIZE, Job
from quart_app.values.settings import ValuesSettings

CANCEL = Script.beside(__file__, "cancel_job.lua", "forget_job.lua")
#: The most jobs that are shown: first unfinished ones, then the newest ones.
SHOWN_JOBS = 20
#: Digits of a value that are shown.
SHOWN_DIGITS = 24

#: The form of `secrets.token_urlsafe(16)`, with which `Jobs.begin` makes ids.
_ID = re.compile(r"[\w-]{22}", re.ASCII)
_NO_JOB = "There is no such job: it was deleted, or its time is over."


@dataclass(frozen=True, slots=True)
class CancelledJob:
    """A job that an operator wanted to cancel. It has `values`; `left` of them were neither found nor failed.

    With 0 left the job was finished already, and its result is kept.
    """

    values: int
    left: int

    @property
    def text(self) -> str:
        """Return what the cancellation did, as a sentence."""
        if not self.left:
            return "The job is finished. Nothing was done; its result is still there."
        return f"Cancelled with {self.values - self.left:,} of {counted(self.values, 'value')} finished."


async def cancel_job(redis: Redis, id: str, actor: Actor) -> CancelledJob | None:
    """Delete a job that is not finished; its work ends within a second. Return None if there is no such job.

    `redis` is a client of the bus. Raises Refused if the text cannot be the id of a job.
    """
    if not _ID.fullmatch(id):
        raise Refused(f"{id!r:.50} is not the id of a job, nor that of a request such as 1700000000000-0")
    key_names = [*(keys.SHARED + name for name in (JOB + id, KEPT, OPEN, SIZE)), keys.AUDIT]
    counts = await CANCEL.run(redis, key_names, id, actor.name, actor.source, keys.AUDIT_KEPT)
    return CancelledJob(int(counts[0]), int(counts[1])) if counts else None


async def cancel_by_id(redis: Redis, id: str, actor: Actor) -> str | None:
    """Cancel a job and return what was done, as a sentence; None if there is no such job. Raises Refused."""
    cancelled = await cancel_job(redis, id, actor)
    return cancelled.text if cancelled else None


class JobsPanel:
    """The panel of /values, and its act."""

    def __init__(self, settings: ValuesSettings) -> None:
        self._settings = settings

    async def read(self, mesh: Mesh) -> Panel:
        """Read up to 20 unfinished jobs and the newest 20 jobs; show 20 of these, the unfinished ones first."""
        redis, shared = mesh.shared, keys.SHARED
        pipeline = redis.pipeline(transaction=False)
        pipeline.zrange(shared + OPEN, 0, SHOWN_JOBS - 1)
        pipeline.zcard(shared + OPEN)
        pipeline.zrevrange(shared + KEPT, 0, SHOWN_JOBS - 1)
        pipeline.zcard(shared + KEPT)
        pipeline.get(shared + SIZE)
        open_ids, open_count, newest, kept_count, size = await pipeline.execute()
        ids = list(dict.fromkeys([*open_ids, *(member.partition(" ")[0] for member in newest)]))[: 2 * SHOWN_JOBS]
        jobs = await self._jobs(redis, ids)
        now_ms = mesh.now_ms()
        jobs.sort(key=lambda job: (job.is_over(now_ms), -job.created_ms))
        # OPEN may still contain a job that has just finished.
        unfinished = max(0, open_count - sum(job.is_over(now_ms) for job in jobs if job.id in open_ids))
        settings = self._settings
        return Panel(
            "jobs",
            "Jobs of /values",
            note="factorisations whose result is fetched later",
            phrase=f"{counted(unfinished, 'job')} in progress" if unfinished else "no job in progress",
            figures=[
                PanelFigure("unfinished", f"{unfinished:,}", f"at most {settings.max_jobs:,}"),
                PanelFigure("kept", f"{kept_count:,}", "with those that are finished"),
                PanelFigure("memory", data_size(int(size or 0)), f"at most {data_size(settings.jobs_bytes)}"),
            ],
            items=[_item(job, now_ms) for job in jobs[:SHOWN_JOBS]],
        )

    async def _jobs(self, redis: Redis, ids: list[str]) -> list[Job]:
        pipeline = redis.pipeline(transaction=False)
        for id in ids:
            pipeline.hmget(keys.SHARED + JOB + id, FIELDS)
        jobs = [Job.parse(id, fields) for id, fields in zip(ids, await pipeline.execute(), strict=True)]
        return [job for job in jobs if job is not None]

    @property
    def act(self) -> Act:
        """Return the act that cancels a job."""
        return Act("cancel-job", "Cancel the job", "", "services", _ask, _cancel)


async def _ask(mesh: Mesh, fields: ActFields) -> ActQuestion:
    """Return what the operator is asked before the job is cancelled."""
    id = fields.get("id", "")
    job_fields: Any = await mesh.shared.hmget(keys.SHARED + JOB + id, FIELDS) if _ID.fullmatch(id) else None
    job = Job.parse(id, job_fields) if job_fields else None
    explanation = _NO_JOB
    if job is not None:
        explanation = (
            f"Finished so far: {job.values - job.left:,} of {counted(job.values, 'value')}. The job and its result are "
            f"deleted, and its work stops within a second; GET /jobs/{id} answers 404 from then on."
        )
    return ActQuestion(f"Cancel the job {id:.30}?", explanation, fields)


async def _cancel(mesh: Mesh, fields: ActFields, actor: Actor) -> Done:
    cancelled = await cancel_job(mesh.shared, fields.get("id", ""), actor)
    if cancelled is None:
        return Done(_NO_JOB, {"changed": False})
    return Done(cancelled.text, {"changed": bool(cancelled.left), "values": cancelled.values, "left": cancelled.left})


def _item(job: Job, now_ms: int) -> PanelItem:
    is_over = job.is_over(now_ms)
    begun = f"begun {duration(max(0, now_ms - job.created_ms))} ago"
    ends = "" if is_over else f", at most {duration(max(0, job.deadline_ms - now_ms))} left"
    failures = f"; {counted(job.failures, 'value')} failed" if job.failures else ""
    lines = [f"{job.done:,} of {counted(job.values, 'value')} done{failures}, {begun}{ends}"]
    state = job.state(now_ms)
    return PanelItem(
        job.id,
        state,
        lines if is_over else lines + [_stage(stage) for stage in job.stages],
        done=job.values - job.left,
        whole=0 if is_over else job.values,  # 0: the panel draws no bar
        act="" if is_over else "cancel-job",
        bad=state == "failed",
    )


def _stage(stage: dict[str, Any]) -> str:
    """Return a line about a stage: value, method, time so far, time left, and the name of the replica."""
    value = str(stage.get("value", ""))
    if len(value) > SHOWN_DIGITS:
        value = f"{value[:8]}…{value[-8:]} ({len(value)} digits)"
    text = f"{value}: {stage.get('stage', '')}"
    if elapsed_s := stage.get("elapsed_s"):
        text += f" for {duration(int(1000 * elapsed_s))}"
        if estimate_s := stage.get("estimate_s"):
            text += f", about {duration(int(1000 * estimate_s))} left"
    return f"{text}, by {stage.get('replica', '')}"
