"""The routes of jobs: POST /values with `Prefer: respond-async`, GET and DELETE /jobs/{id}."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from quart import Blueprint, Response, jsonify
from quart_schema import tag

from quart_app.http.problems import Problem
from quart_app.service import Context
from quart_app.values import preferences
from quart_app.values.answers import Array, Responses, element
from quart_app.values.chunks import ItemAsked
from quart_app.values.jobs import Gone, Job, Jobs, job_bytes
from quart_app.values.pace import Pace
from quart_app.values.settings import ValuesSettings

#: The pause between two reads of a job that a client waits for. A longer pause delays the answer, and a shorter pause
#: costs more reads.
JOB_LOOK_S = 0.1
#: How many bytes of the budget for answers a result of several parts takes while it is read. This is a guess, because
#: the length of a result is known only after it was read. A larger guess refuses more clients; a smaller one may
#: let results take more memory than the budget.
RESULT_GUESS_BYTES = 4 << 20
#: The error of a value that was not done in time, in the form of the other failures of a job (see ValueOutcome).
LATE_FAILURE = '{"detail": "not done before the job\'s time was over"}'

_tagged = tag(["values"])


class JobRoutes:
    """One method per route, whose name is a part of the operationId; and `begin` for the POST of values."""

    def __init__(self, context: Context, settings: ValuesSettings, pace: Pace, responses: Responses) -> None:
        self._context = context
        self._responses = responses
        self._jobs, self._pace = Jobs(settings, pace), pace
        self.blueprint = Blueprint("jobs", __name__)
        self.blueprint.add_url_rule("/jobs/<id>", "show_job", self.show, methods=["GET"])
        self.blueprint.add_url_rule("/jobs/<id>", "end_job", self.end, methods=["DELETE"])

    async def begin(self, items: Sequence[ItemAsked]) -> Response:
        """Begin a job. Answer 202, or 200 with the result if the job is done within `Prefer: wait`."""
        replica = self._context.mesh.replica
        classes = await replica.classes()
        await self._pace()
        for cls in sorted({item.cls for item in items}):
            # `absence` is the error for a class without a live replica, which could not do its part of the job.
            if error := classes.absence(cls):
                raise error
        # Refuse the job with Busy if Redis has no room for it. This stores nothing yet.
        replica.memory.store(job_bytes(items))
        id = await self._jobs.begin(replica, items)
        job = await self._wait(id)
        # Answer only when enough copies of Redis have the job.
        await replica.confirm()
        state = "waiting" if job is None else job.state(replica.now_ms())
        if job is not None and state == "done":
            # The list of results is the whole body: no text comes before or after it.
            return await self._result_response(job, "", "")
        # A failed job gets a 202, too: the client reads the errors at the path of the job.
        response = jsonify({"id": id, "state": state})
        response.status_code = 202
        response.headers["Location"] = f"/jobs/{id}"
        response.headers["Preference-Applied"] = "respond-async"
        return response

    @_tagged
    async def show(self, id: str) -> Response:
        """Show a job: waiting, running, done (with its result) or failed (with what is known)."""
        replica = self._context.mesh.replica
        job = await self._jobs.get(replica, id)
        if job is None:
            raise _no_such_job()
        await replica.confirm()
        view = job.view(replica.now_ms())
        if not job.is_over(replica.now_ms()):
            return jsonify(view)
        # The result goes inside the view, before its closing brace.
        return await self._result_response(job, json.dumps(view)[:-1] + ', "result": ', "}")

    @_tagged
    async def end(self, id: str) -> Response:
        """End a job. The values that it has stored before stay."""
        if not await self._jobs.delete(self._context.mesh.replica, id):
            raise _no_such_job()
        await self._context.mesh.confirm()
        return Response(status=204)

    async def _wait(self, id: str) -> Job | None:
        """Wait for a job as long as `Prefer: wait` says, and return the job.

        Return None if the client does not ask to wait. Raises Problem if the job is deleted meanwhile.
        """
        replica, wait_ms = self._context.mesh.replica, preferences.read_wait_ms()
        if wait_ms is None:
            return None
        end_ms = replica.now_ms() + min(wait_ms, self._context.settings.max_wait_ms)
        while True:
            job = await self._jobs.get(replica, id)
            if job is None:
                raise _no_such_job()
            if job.is_over(replica.now_ms()) or replica.now_ms() >= end_ms:
                return job
            await asyncio.sleep(JOB_LOOK_S)

    async def _result_response(self, job: Job, text_before: str, text_after: str) -> Response:
        """Return the results between two other parts of the JSON text; errors of the job come before the second one."""
        results, errors = Array(), Array()
        failed_values: set[str] = set()
        # Reserve memory before a long answer is read.
        with self._responses.budget.lent(RESULT_GUESS_BYTES if job.part_count > 1 else 0):
            try:
                async for outcomes in self._jobs.outcomes(self._context.mesh.replica, job):
                    for value, factors, failure in outcomes:
                        if factors is not None:
                            results.add(element(value, factors))
                        elif value not in failed_values:
                            failed_values.add(value)
                            # The failure is a JSON object; the value takes the place of its opening brace.
                            errors.add(f'{{"value": {value}, {(failure or LATE_FAILURE)[1:]}'.encode())
            except Gone:
                raise _no_such_job() from None
        if not failed_values:
            return self._responses.respond(results, text_before, text_after)
        return self._responses.send([*results.pieces(text_before, ""), *errors.pieces(', "errors": ', text_after)])


def _no_such_job() -> Problem:
    return Problem(404, "there is no such job, or it is no longer kept")
