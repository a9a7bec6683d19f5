"""Jobs: a POST of values whose result is fetched later. Any replica can begin, show and delete a job.

    shared:values:job:{id}      hash, PX     one job, with these fields:
        created, deadline       ms of Redis's clock
        size                    about how many bytes of Redis the job takes
        values                  how many different values it has
        left, failures          how many of these are neither found nor failed, and how many failed
        parts                   how many fields order:{n} there are
        order:0, order:1, …     the values in the order of the request, with spaces between them
        work:{class}:{n}        the items of step n of a class (JSON), until this step is sent; n is at least 1
        found:{value}           the factors of the value
        failed:{value}          why the value has no factors (JSON)
        stage:{class}           how the work of a class is going now (JSON); `Errand` writes it, for one value at a time
    shared:values:jobs          zset, PX     "{id} {size}" of all kept jobs, by expiry (ms)
    shared:values:jobs:open     zset, PX     the ids of unfinished ("open") jobs, by deadline (ms). A finished job stays
                                            here until somebody tries to begin another one, or deletes it
    shared:values:jobs:size     counter, PX  the sum of the sizes of all kept jobs

A job is kept until it expires or is deleted. The number of unfinished jobs and the bytes of all kept jobs have bounds.
No command reads a whole job at once. A step reads its own work, and a look at a job reads the ten `FIELDS`. A result is
read part by part.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from mesh import Busy, Class, MeshError, Unavailable
from mesh.raw import Replica, Script
from quart_app.values.chunks import Chunks, ItemAsked
from quart_app.values.pace import Pace
from quart_app.values.settings import ValuesSettings

#: The keys of this module's docstring, without "shared:". JOB is a prefix, which the id of a job follows. The others
#: are whole keys.
JOB = "values:job:"
KEPT_JOBS = "values:jobs"
UNFINISHED_JOBS = "values:jobs:open"
KEPT_BYTES = "values:jobs:size"

#: The operation that stores values; `handlers` serves it. The steps of a job use it, and a plain POST /values, too.
PUT = "values.put"

#: The scripts that begin a job if there is room for it, and that delete a job. The text of forget_job.lua becomes a
#: part of end_job.lua (see `Script.beside`).
ADMIT = Script.beside(__file__, "admit_job.lua")
DELETE = Script.beside(__file__, "end_job.lua", "forget_job.lua")

#: Sets fields of a job. KEYS: job. ARGV: field, text, ... If there is no such job, writes nothing and returns 0.
WRITE_FIELDS = Script(
    """
local job = KEYS[1]
if redis.call('EXISTS', job) == 0 then return 0 end
redis.call('HSET', job, unpack(ARGV))
return 1
"""
)

#: A job is stored before its first steps are sent. If the replica dies in between, the job expires after this time.
#: With a shorter time, a replica might not finish storing a large job. With a longer time, a job that no replica works
#: on counts for longer against `max_jobs` and `jobs_bytes`.
UNSENT_JOB_MS = 10_000
#: About how many bytes of Redis an item takes in addition to its texts (see `job_bytes`). Too small a number lets jobs
#: take more than their bound; too large a one refuses jobs early.
ITEM_BYTES = 250
#: The most values, and about the most bytes, in a field order:{n}. One piece of work reads and shows such a part; a
#: larger part would block the event loop for longer.
MOST_PART_VALUES, MOST_PART_BYTES = 100, 1 << 14
#: About the most words and bytes of a job that are sent to Redis at once. More would block Redis and the event loop for
#: longer, fewer would need more trips. Lua's `unpack` fails at about 8000 words.
MOST_PIECE_WORDS, MOST_PIECE_BYTES = 2000, 1 << 16

#: The fields that a look at a job reads. `admit_job.lua` reads the first eight, in this order.
FIELDS = ("created", "deadline", "values", "left", "stage:A", "stage:B", "stage:C", "stage:D", "failures", "parts")


class Gone(Exception):
    """The job was deleted, or it has expired."""


class ValueOutcome(NamedTuple):
    """The outcome of one value: its factors, or why it failed (JSON). Both are None while the value is not finished."""

    value: str
    factors: str | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """A job without the values themselves. `left_count` values are neither found nor failed.

    `created_ms` and `deadline_ms` are moments of Redis's clock (ms). `part_count` is the number of fields order:{n}.
    """

    id: str
    created_ms: int
    deadline_ms: int
    value_count: int
    left_count: int
    stages: list[dict[str, Any]]
    failed_count: int = 0
    part_count: int = 0

    @classmethod
    def parse(cls, id: str, fields: Sequence[str | None]) -> Job | None:
        """Return the job from the texts of its FIELDS; None if it is not stored, or if its work was not sent.

        `fields` may be the first eight FIELDS only, as `admit_job.lua` returns them. Then the two missing counts
        are 0.
        """
        created, deadline, values, left, *others = fields
        if created is None or deadline is None or values is None or left is None:
            return None
        # The others are the stages of four classes, then `failures` and `parts`.
        stages = [json.loads(stage) for stage in others[:4] if stage is not None]
        return cls(id, int(created), int(deadline), int(values), int(left), stages, *map(int, filter(None, others[4:])))

    @property
    def done_count(self) -> int:
        """How many values have their factors."""
        return self.value_count - self.left_count - self.failed_count

    def state(self, now_ms: int) -> str:
        """Return "waiting", "running", "done" or "failed"."""
        if not self.left_count:
            return "failed" if self.failed_count else "done"
        if now_ms >= self.deadline_ms:
            return "failed"
        return "running" if self.stages or self.left_count < self.value_count else "waiting"

    def is_over(self, now_ms: int) -> bool:
        """Return whether the job is done or failed."""
        return self.state(now_ms) in {"done", "failed"}

    def view(self, now_ms: int) -> dict[str, Any]:
        """Return what a client sees of the job in addition to its results. Times are in seconds."""
        facts: dict[str, Any] = {
            "id": self.id,
            "state": self.state(now_ms),
            "elapsed_s": round(max(0, now_ms - self.created_ms) / 1000, 3),
            "values": self.value_count,
            "values_done": self.done_count,
        }
        return facts if self.is_over(now_ms) else facts | {"working_on": self.stages}

    def ends_in_s(self, now_ms: int) -> float:
        """Return in how many seconds the job is expected to end, at the latest at its deadline.

        If some values are finished, the others are expected to take as long on average. Each stage shows one value; its
        `estimate_s` is the time that was left when the stage was written (see `Progress`). If no value is finished and
        the stages show all values with an estimate, the longest counts, because the classes work at the same time.
        Otherwise the deadline counts.
        """
        until_deadline_s = max(0, self.deadline_ms - now_ms) / 1000
        finished_count = self.value_count - self.left_count
        if finished_count:
            return min(until_deadline_s, (now_ms - self.created_ms) / 1000 * self.left_count / finished_count)
        estimates = [stage.get("estimate_s") for stage in self.stages]
        if len(estimates) == self.left_count and None not in estimates:
            return min(until_deadline_s, max(float(estimate) for estimate in estimates if estimate is not None))
        return until_deadline_s


def job_bytes(items: Sequence[ItemAsked]) -> int:
    """Return about how many bytes of Redis a job takes: order, work and factors are each as long as the values."""
    return sum([3 * len(item.value) + ITEM_BYTES for item in items])


class Jobs:
    """What the routes do with jobs: begin one, look at it, read its result, delete it."""

    def __init__(self, settings: ValuesSettings, pace: Pace) -> None:
        self._settings = settings
        self._pace = pace

    async def begin(self, replica: Replica, items: Sequence[ItemAsked]) -> str:
        """Store a job, and send the first step of each class; return the id of the job. Raises Busy, Unavailable.

        Of items with the same value the last one counts.
        """
        await self._pace()
        item_by_value, size = {item.value: item for item in items}, job_bytes(items)
        await self._pace()
        # Each chunk is one step. With a bound of 0 bytes for large values, each large value gets a step of its own.
        steps = Chunks(self._settings.chunk, 0)
        await steps.extend(item_by_value.values(), self._pace)
        first_items, work_fields = await self._split_into_steps(steps)
        order_fields = await self._order_fields(items)
        counts = {"values": len(item_by_value), "left": len(item_by_value), "failures": 0, "parts": len(order_fields)}
        id = secrets.token_urlsafe(16)  # 128 random bits, which nobody can guess
        created_ms = await self._admit(replica, id, size, counts)
        await self._store(replica, id, order_fields | work_fields)
        await self._send(replica, id, size, created_ms, first_items)
        return id

    async def _split_into_steps(self, steps: Chunks) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the items of the first step by class, and the fields `work` that store the items of later steps."""
        first_items: dict[str, Any] = {}
        work_fields: dict[str, str] = {}
        latest_index: dict[str, int] = {}  # by class, of the latest step
        for count_before, (cls, chunk) in enumerate(steps.all):
            # Let other work run after each MOST_PART_VALUES steps. A longer piece would block the event loop longer.
            if count_before % MOST_PART_VALUES == MOST_PART_VALUES - 1:
                await self._pace()
            step_index = latest_index[cls] = latest_index.get(cls, -1) + 1
            if step_index:
                work_fields[f"work:{cls}:{step_index}"] = msgspec.json.encode(chunk).decode()
            else:
                first_items[cls] = chunk
        return first_items, work_fields

    async def _order_fields(self, items: Sequence[ItemAsked]) -> dict[str, str]:
        """Return the fields `order`, which store the values in the order of the request."""
        fields: dict[str, str] = {}
        values: list[str] = []
        byte_count = 0
        for item in items:
            if len(values) >= MOST_PART_VALUES or (values and byte_count + len(item.value) > MOST_PART_BYTES):
                fields[f"order:{len(fields)}"] = " ".join(values)
                values, byte_count = [], 0
                await self._pace()
            values.append(item.value)
            byte_count += len(item.value)
        fields[f"order:{len(fields)}"] = " ".join(values)
        return fields

    async def _admit(self, replica: Replica, id: str, size: int, counts: dict[str, int]) -> int:
        """Store the counts of a job, and add its bytes to KEPT_BYTES; return when it was created (ms). Raises Busy.

        `size` is in bytes. `counts` are fields of the job. The values and the work follow (`_store`). KEPT_JOBS and
        UNFINISHED_JOBS list the job from now on. If this replica dies before `_send`, the job expires after
        UNSENT_JOB_MS. The next admission then takes its bytes off KEPT_BYTES.
        """
        settings = self._settings
        words = [word for pair in counts.items() for word in pair]
        bounds = (settings.max_jobs, settings.jobs_bytes, UNSENT_JOB_MS)
        admission = await replica.store().shared.script(ADMIT, _job_keys(id), id, size, *bounds, *words)
        match admission:
            case ["admitted", created]:
                return int(created)
            case ["open", now, *open_jobs]:
                raise _too_many_jobs(settings.max_jobs, int(now), open_jobs)
            case ["size", now, room_at]:
                retry_s = _retry_after_s(int(room_at) - int(now))
                reason = f"all jobs and their results may take {settings.jobs_bytes} bytes, and this one does not fit"
                detail = f"{reason}; DELETE those that you have read"
                raise Busy(f"{detail}, or retry after {retry_s} s", retry_after=retry_s)
        raise MeshError(f"the script that admits a job returned {admission!r:.100}")

    async def _store(self, replica: Replica, id: str, fields: dict[str, str]) -> None:
        """Add the values and the work of later steps to the job, piece by piece.

        Raises Unavailable if the job has expired since `_admit`.
        """
        words: list[str] = []
        byte_count = 0
        for field_count, (field, text) in enumerate(fields.items(), 1):
            words += (field, text)
            byte_count += len(text)
            if byte_count < MOST_PIECE_BYTES and len(words) < MOST_PIECE_WORDS and field_count < len(fields):
                continue  # the piece is not full, and fields follow
            if not await replica.store().shared.script(WRITE_FIELDS, [JOB + id], *words):
                raise _not_begun()
            words, byte_count = [], 0
            await self._pace()

    async def _send(self, replica: Replica, id: str, size: int, created_ms: int, first_items: dict[str, Any]) -> None:
        """Send the first step of each class, and let the job live until its results expire, all in one commit.

        Raises Unavailable if the job has expired since `_admit`: then there is no field `created`, and nothing is sent.
        """
        deadline_ms = created_ms + self._settings.job_s * 1000
        expiry_ms = deadline_ms + self._settings.job_kept_s * 1000
        transaction = replica.transaction()
        shared = transaction.shared
        shared.expect(JOB + id, str(created_ms), "created")
        shared.hset(JOB + id, {"deadline": deadline_ms})
        shared.zadd(KEPT_JOBS, {f"{id} {size}": expiry_ms})
        shared.zadd(UNFINISHED_JOBS, {id: deadline_ms})
        shared.write("PEXPIREAT", JOB + id, expiry_ms)
        for key in (KEPT_JOBS, UNFINISHED_JOBS, KEPT_BYTES):
            shared.keep_until(key, expiry_ms)
        # Each step names the next one by its number.
        for cls, items in sorted(first_items.items()):
            transaction.send(Class(cls), PUT, {"items": items, "job": id, "next": 1}, deadline=deadline_ms)
        if not await replica.commit(transaction):
            raise _not_begun()

    async def get(self, replica: Replica, id: str) -> Job | None:
        """Return a job, or None if there is no job with this id, or if its work was not sent yet."""
        return Job.parse(id, await replica.store().shared.hmget(JOB + id, *FIELDS))

    async def outcomes(self, replica: Replica, job: Job) -> AsyncIterator[list[ValueOutcome]]:
        """Yield the outcomes of all values in the order of the request, part by part. Raises Gone."""
        shared, key = replica.store().shared, JOB + job.id
        for part_index in range(job.part_count):
            text = await shared.hget(key, f"order:{part_index}")
            if text is None:
                raise Gone(job.id)
            values = text.split()
            factors = await shared.hmget(key, *[f"found:{value}" for value in values])
            failures: Sequence[str | None] = [None] * len(values)
            if None in factors:
                failures = await shared.hmget(key, *[f"failed:{value}" for value in values])
            await self._pace()
            yield list(map(ValueOutcome, values, factors, failures))

    async def delete(self, replica: Replica, id: str) -> bool:
        """Delete a job, so that its work stops and its bytes no longer count; return False if there is no such job."""
        return bool(await replica.store().shared.script(DELETE, _job_keys(id), id))


def _job_keys(id: str) -> list[str]:
    """Return the KEYS of the scripts that admit or delete a job."""
    return [JOB + id, KEPT_JOBS, UNFINISHED_JOBS, KEPT_BYTES]


def _retry_after_s(milliseconds: float) -> int:
    """Return a wait in whole seconds for the header Retry-After, at least one."""
    return max(1, math.ceil(milliseconds / 1000))


def _not_begun() -> Unavailable:
    """Return the error for a job that has expired before its first steps were sent. A retry makes a new job."""
    return Unavailable(f"the job was not begun within {UNSENT_JOB_MS // 1000} s; retry after 1 s", retry_after=1)


def _too_many_jobs(max_jobs: int, now_ms: int, open_jobs: Sequence[Sequence[str | None]]) -> Busy:
    """Return the error for a client that begins one job too many: it says when the first job is expected to end.

    `open_jobs` has the first eight FIELDS of each unfinished job.
    """
    # The id of the job is not known here, and not needed. `parse` returns None while the work of a job was not sent.
    ends_in_s = [job.ends_in_s(now_ms) for fields in open_jobs if (job := Job.parse("", fields)) is not None]
    retry_s = _retry_after_s(1000 * min(ends_in_s, default=UNSENT_JOB_MS / 1000))
    return Busy(f"{max_jobs} jobs are in progress; retry after {retry_s} s", retry_after=retry_s)
