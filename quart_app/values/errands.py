"""The work of jobs, as the replicas do it.

A step of a job is a request without a caller. The commit that stores the results of a step also sends the next step. So
a job takes one place in the queue of a class, however many values it has. And each step takes effect once, even if a
process dies. Every commit expects that the job still exists, and a replica that computes for a job checks this three
times a second. So the work ends soon after the job is deleted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from mesh import Busy, Class, MeshError
from mesh.raw import Effects, Replica, Request
from quart_app.values.hard_values import deadline_of
from quart_app.values.jobs import JOB, PUT, WRITE_FIELDS, Gone

T = TypeVar("T")

#: The pause between two checks whether a job still exists. The live page says that the work of a cancelled job ends
#: within a second, so the pause must stay well below this. With a longer one, the work goes on for longer after the job
#: was deleted; a shorter one costs more trips to Redis.
EXISTENCE_CHECK_S = 0.3
#: The longest pause between two tries to find room for a value, and the pause if the error names none. A longer pause
#: leaves room unused; a shorter one costs more tries.
LONGEST_WAIT_FOR_ROOM_S = 0.5

#: Returns how the factorisation of a value is going; None if this replica is not factorising the value.
FindProgress = Callable[[str], dict[str, Any] | None]


class Errands:
    """Finds out which requests are errands: `of` returns the errand of a request.

    `current_replica` returns the present membership, because another one may follow.
    """

    def __init__(self, current_replica: Callable[[], Replica], find_progress: FindProgress) -> None:
        self._current_replica = current_replica
        self.find_progress = find_progress

    async def of(self, request: Request) -> Errand | None:
        """Return the errand of a request; None if the request belongs to no job. Raises Gone."""
        # The bodies of a job's requests name the job; `hard_values`, `jobs` and this module send them.
        id = request.body.get("job")
        if id is None:
            return None
        replica = self._current_replica()
        next_items_field = f"work:{replica.cls}:{request.body.get('next')}"
        created, next_items = await replica.store().shared.hmget(JOB + id, "created", next_items_field)
        if created is None:
            raise Gone(id)
        return Errand(id, created, next_items_field, next_items, request, replica, self.find_progress)


class Errand:
    """One step of a job, or a part of a step, as the handler of a put works on it.

    `next_items` are the items of the next step (JSON); None if there is no next step. The field `next_items_field` of
    the job stores them. `created` is the job's field of that name: when the job was created.
    """

    def __init__(
        self,
        id: str,
        created: str,
        next_items_field: str,
        next_items: str | None,
        request: Request,
        replica: Replica,
        find_progress: FindProgress,
    ) -> None:
        self._id = id
        self._key = JOB + id
        self._created = created
        self._next_items_field = next_items_field
        self._next_items = next_items
        self._request = request
        self._replica = replica
        self._find_progress = find_progress

    async def while_the_job_exists(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, and store three times a second in the job how the work is going.

        If the job was deleted or has expired, cancel the work and raise Gone. Raises what the work raises.
        """
        task = asyncio.create_task(work)
        try:
            # The first result of `wait` is the set of tasks that have ended; it is empty while the work goes on.
            while not (await asyncio.wait([task], timeout=EXISTENCE_CHECK_S))[0]:
                if not await self._store_stage():
                    raise Gone(self._id)
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def until_there_is_room(self, try_once: Callable[[], Awaitable[T]]) -> T:
        """Try again while a try raises Busy, because there is no room to compute a value or to store the result.

        The time does not matter, because no client waits for the work of a job.
        """
        while True:
            try:
                return await try_once()
            except Busy as error:
                await asyncio.sleep(min(error.retry_after or LONGEST_WAIT_FOR_ROOM_S, LONGEST_WAIT_FOR_ROOM_S))

    def store_factors(self, transaction: Effects, factors: dict[str, str], *, is_over: bool = True) -> None:
        """Store factors in the job, by value. If this step is over, send the next step in the same commit."""
        self._expect_job(transaction)
        if factors:
            transaction.shared.hset(self._key, {f"found:{value}": text for value, text in factors.items()})
            transaction.shared.write("HINCRBY", self._key, "left", -len(factors))
        if is_over:
            self._end_step(transaction)

    def store_failure(self, transaction: Effects, error: MeshError) -> None:
        """Store in the job why the values of this request were not factorised, and send the next step."""
        self._expect_job(transaction)
        # Without the fact `value`: the result of a job names the value beside each error.
        facts = {name: text for name, text in error.facts.items() if name != "value"}
        failure = json.dumps({"detail": error.detail, **facts})
        values = [item["value"] for item in self._request.body["items"]]
        transaction.shared.hset(self._key, {f"failed:{value}": failure for value in values})
        transaction.shared.write("HINCRBY", self._key, "left", -len(values))
        transaction.shared.write("HINCRBY", self._key, "failures", len(values))
        self._end_step(transaction)

    def send_to_class(self, transaction: Effects) -> None:
        """Send this part to the class. The replica that gets it there waits until there is room.

        On the stream of a database, the part would hold up the other requests while it waits.
        """
        body = self.part_body(self._request.body["items"])
        transaction.send(Class(self._replica.cls), PUT, body, deadline=deadline_of(self._request))

    def job_fields(self, *, with_step: bool) -> dict[str, Any]:
        """Return the fields of this request's body that name the job and, if `with_step`, the next step.

        A request with these fields ends the step only if it names the next step.
        """
        kept_names = ("job", "next") if with_step else ("job",)
        return {name: self._request.body[name] for name in kept_names if name in self._request.body}

    def part_body(self, items: list[dict[str, str | int]]) -> dict[str, Any]:
        """Return the body of a request for some of the values: it names the job, and no next step."""
        return {"items": items, "job": self._id}

    def _expect_job(self, transaction: Effects) -> None:
        """Let the commit fail if the job was deleted. Then the handler runs again, and `Errands.of` raises Gone."""
        transaction.shared.expect(self._key, self._created, "created")

    def _end_step(self, transaction: Effects) -> None:
        """Send the next step, and delete the fields of the job for its items and for the stage of this step."""
        next_step = self._request.body.get("next")
        # Only the request that names the next step ends a step. A part of a step names none.
        if next_step is None:
            return
        cls = self._replica.cls
        transaction.shared.hdel(self._key, f"stage:{cls}", self._next_items_field)
        if self._next_items is not None:
            body = {"items": json.loads(self._next_items), "job": self._id, "next": next_step + 1}
            transaction.send(Class(cls), PUT, body, deadline=deadline_of(self._request))

    async def _store_stage(self) -> bool:
        """Store in the job how the work is going; return whether the job still exists."""
        values = [item["value"] for item in self._request.body["items"]]
        # The progress of the first value that this replica is factorising now; without such a value, the step waits.
        progress = next(filter(None, map(self._find_progress, values)), {"value": int(values[0]), "stage": "waiting"})
        text = json.dumps({**progress, "replica": self._replica.id})
        shared = self._replica.store().shared
        try:
            return bool(await shared.script(WRITE_FIELDS, [self._key], f"stage:{self._replica.cls}", text))
        except Busy:
            # Redis is full. The work goes on without this report, and the commit finds out whether the job was deleted.
            return True
