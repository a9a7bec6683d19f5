"""Jobs: a POST that nobody waits for. Any replica tells how one is, any one can end it.

    shared:values:job:{id}   hash, PX   created, deadline (ms of Redis's clock); order (the values as they were given),
                                        items (each value once), both JSON; then, as it goes on, found:{value}
                                        (factors), failed:{value} (JSON), stage:{class} (JSON)
    shared:values:jobs       zset       id by expiry: how many there are

The work travels as requests like any other, with nobody to reply to: one per class at a time, the next one sent by the
commit that stores what the one before has found. So a job does everything once, whoever dies; it takes one place in a
class's queue, however many values it has; and it ends when its hash is gone, for every commit expects that it is
there, and whoever computes for it looks three times a second.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mesh import Busy, Class, MeshError, Replica, Request, Transaction
from mesh.wire.script import Script
from quart_app.values.notation import is_small
from quart_app.values.settings import ValuesSettings

T = TypeVar("T")

JOB = "values:job:"
JOBS = "values:jobs"
SHARED = "shared:"

#: the operation that a job's work travels as
PUT = "values.put"
#: between two looks whether a job is still wanted
LOOK_S = 0.3
#: between two tries to find room for a hard number
BUSY_S = 0.5

#: Tell how a job is. KEYS: job. ARGV: field, text. 0: the job is gone, and stays so.
TELL = Script(
    """
local job, field, text = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', job) == 0 then return 0 end
redis.call('HSET', job, field, text)
return 1
"""
)


class Gone(Exception):
    """The job was deleted, or its time is over."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One value of a job."""

    value: str
    ttl: int
    cls: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored."""

    id: str
    created_ms: int
    deadline_ms: int
    order: list[str]
    items: list[Wanted]
    found: dict[str, str]
    failed: dict[str, dict[str, Any]]
    stages: dict[str, dict[str, Any]]

    @classmethod
    def parse(cls, id: str, fields: dict[str, str]) -> Job:
        def numbered(prefix: str) -> dict[str, str]:
            return {name.removeprefix(prefix): text for name, text in fields.items() if name.startswith(prefix)}

        return cls(
            id,
            int(fields["created"]),
            int(fields["deadline"]),
            json.loads(fields["order"]),
            [Wanted(**item) for item in json.loads(fields["items"])],
            numbered("found:"),
            {value: json.loads(text) for value, text in numbered("failed:").items()},
            {name[6:]: json.loads(text) for name, text in fields.items() if name.startswith("stage:")},
        )

    def state(self, now_ms: int) -> str:
        """waiting, running, done, or failed."""
        open_values = {item.value for item in self.items} - set(self.found) - set(self.failed)
        if not open_values:
            return "failed" if self.failed else "done"
        if now_ms >= self.deadline_ms:
            return "failed"
        return "running" if self.stages or self.found else "waiting"

    def view(self, now_ms: int) -> dict[str, Any]:
        """Return what a client sees beside the result. Times in seconds."""
        state = self.state(now_ms)
        shown: dict[str, Any] = {
            "id": self.id,
            "state": state,
            "elapsed_s": round(max(0, now_ms - self.created_ms) / 1000, 3),
            "values": len(self.items),
            "values_done": len(self.found),
        }
        if state in {"waiting", "running"}:
            shown["working_on"] = list(self.stages.values())
        if state == "failed":
            late = {"detail": "not done before the job's time was over"}
            missing = [item.value for item in self.items if item.value not in self.found]
            shown["errors"] = [{"value": int(value), **self.failed.get(value, late)} for value in missing]
        return shown

    def result(self, now_ms: int) -> list[tuple[str, str]] | None:
        """Return the values with their factors: all in the order of the request once done, those there are once
        failed; None before."""
        match self.state(now_ms):
            case "done":
                return [(value, self.found[value]) for value in self.order]
            case "failed":
                return list(self.found.items())
        return None


class Jobs:
    """Jobs from outside: begin, look, end."""

    def __init__(self, settings: ValuesSettings) -> None:
        self._settings = settings

    async def begin(self, replica: Replica, items: Sequence[Wanted]) -> str:
        """Store a job and send its work on its way, in one step; returns its id. Raises Busy.

        Of items with the same value the last one counts.
        """
        order = [item.value for item in items]
        items = list({item.value: item for item in items}.values())
        now_ms = replica.now_ms()
        await self._admit(replica, now_ms)
        id = secrets.token_urlsafe(16)
        deadline_ms = now_ms + self._settings.job_s * 1000
        expiry_ms = deadline_ms + self._settings.job_kept_s * 1000
        transaction = replica.transaction()
        fields: dict[str, str | int] = {"created": now_ms, "deadline": deadline_ms}
        kept = [{"value": item.value, "ttl": item.ttl, "cls": item.cls} for item in items]
        fields |= {"order": json.dumps(order), "items": json.dumps(kept)}
        transaction.shared.hset(JOB + id, fields)
        transaction.shared.write("PEXPIREAT", JOB + id, expiry_ms)
        transaction.shared.zadd(JOBS, {id: expiry_ms})
        for cls in sorted({item.cls for item in items}):
            _send(transaction, id, cls, items, 0, self._settings.chunk, deadline_ms)
        await replica.commit(transaction)
        return id

    async def _admit(self, replica: Replica, now_ms: int) -> None:
        await replica.shared.zremrangebyscore(SHARED + JOBS, "-inf", now_ms)
        if await replica.shared.zcard(SHARED + JOBS) >= self._settings.max_jobs:
            raise Busy("as many jobs as can be taken are kept", retry_after=10)

    async def get(self, replica: Replica, id: str) -> Job | None:
        """A job; None where there is none of that id any more."""
        fields = await replica.store().shared.hgetall(JOB + id)
        return Job.parse(id, fields) if fields else None

    async def end(self, replica: Replica, id: str) -> bool:
        """Forget a job, so that its work stops; False where there is none."""
        await replica.shared.zrem(SHARED + JOBS, id)
        return bool(await replica.shared.delete(SHARED + JOB + id))


#: how the factorisation of a value is going; None where it is not under way here
Progress = Callable[[str], dict[str, Any] | None]


class Errands:
    """Makes errands; `chunk` small values go together."""

    def __init__(self, replica: Callable[[], Replica], chunk: int, progress: Progress) -> None:
        self._replica = replica
        self.chunk = chunk
        self.progress = progress

    async def of(self, request: Request) -> Errand | None:
        """The errand of a request; None where it belongs to no job. Raises Gone."""
        id = request.body.get("job")
        if id is None:
            return None
        replica = self._replica()
        fields = await replica.store().shared.hgetall(JOB + id)
        if not fields:
            raise Gone(id)
        return Errand(Job.parse(id, fields), request, replica, self)


class Errand:
    """The part of a job that one request is about, worker side."""

    def __init__(self, job: Job, request: Request, replica: Replica, errands: Errands) -> None:
        self._job = job
        self._request = request
        self._replica = replica
        self._errands = errands

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; tell how it is, three times a second. Raises Gone once the job is, and the work is cancelled."""
        working = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([working], timeout=LOOK_S))[0]:
                if not await self._tell():
                    raise Gone(self._job.id)
            return working.result()
        finally:
            working.cancel()
            await asyncio.wait([working])

    async def patiently(self, try_once: Callable[[], Awaitable[T]]) -> T:
        """Try until there is room for it: a job has time."""
        while True:
            try:
                return await try_once()
            except Busy as error:
                await asyncio.sleep(min(error.retry_after or BUSY_S, BUSY_S))

    def found(self, transaction: Transaction, factors: dict[str, str]) -> None:
        """Store what was found, and go on with the next values, in the same commit."""
        self._expect(transaction)
        texts = {f"found:{value}": found for value, found in factors.items()}
        if texts:
            transaction.shared.hset(JOB + self._job.id, texts)
        self._go_on(transaction)

    def failed(self, transaction: Transaction, error: MeshError) -> None:
        """Store why the values were not factorised, and go on with the next ones."""
        self._expect(transaction)
        why = json.dumps({"detail": error.detail, **error.facts})
        values = [item["value"] for item in self._request.body["items"]]
        transaction.shared.hset(JOB + self._job.id, {f"failed:{value}": why for value in values})
        self._go_on(transaction)

    def part(self, items: list[dict[str, str | int]]) -> dict[str, Any]:
        """The body of a request for some of the values, to be sent to their holder."""
        return {"items": items, "job": self._job.id}

    @property
    def deadline_ms(self) -> int:
        return self._job.deadline_ms

    def _expect(self, transaction: Transaction) -> None:
        transaction.shared.expect(JOB + self._job.id, str(self._job.created_ms), "created")

    def _go_on(self, transaction: Transaction) -> None:
        after = self._request.body.get("next")
        if after is not None:
            cls = self._replica.cls
            transaction.shared.hdel(JOB + self._job.id, f"stage:{cls}")
            _send(transaction, self._job.id, cls, self._job.items, after, self._errands.chunk, self._job.deadline_ms)

    async def _tell(self) -> bool:
        values = [item["value"] for item in self._request.body["items"]]
        known = next(filter(None, map(self._errands.progress, values)), {"value": int(values[0]), "stage": "waiting"})
        text = json.dumps({**known, "replica": self._replica.id})
        shared = self._replica.store().shared
        return bool(await shared.script(TELL, [JOB + self._job.id], f"stage:{self._replica.cls}", text))


def _send(
    transaction: Transaction, id: str, cls: str, items: Sequence[Wanted], after: int, chunk: int, deadline_ms: int
) -> None:
    """Send the next values of a class, if there are any: some small ones, or a large one."""
    own = [item for item in items if item.cls == cls]
    if after >= len(own):
        return
    count = 1
    if is_small(own[after].value):
        while count < chunk and after + count < len(own) and is_small(own[after + count].value):
            count += 1
    group = [{"value": item.value, "ttl": item.ttl} for item in own[after : after + count]]
    body = {"items": group, "job": id, "next": after + count}
    transaction.send(Class(cls), PUT, body, deadline=deadline_ms)
