"""The routes of jobs: POST /values with `Prefer: respond-async`, GET and DELETE /jobs/{id}."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from quart import Blueprint, Response, jsonify
from quart_schema import tag

from mesh import NoReplica
from quart_app.http.problems import Problem
from quart_app.service import Context
from quart_app.values import preferences
from quart_app.values.answers import Answers, Array
from quart_app.values.jobs import Job, Jobs, Wanted
from quart_app.values.pace import Pace
from quart_app.values.settings import ValuesSettings

#: Between two looks at a job that a client waits for.
LOOK_S = 0.1

#: What an item of a job takes beside its digits, about.
JOB_ITEM_BYTES = 120

_tagged = tag(["values"])


class JobRoutes:
    """One method per route, and `begin` for the POST of values."""

    def __init__(self, context: Context, settings: ValuesSettings, pace: Pace, answers: Answers) -> None:
        self._context = context
        self._pace = pace
        self._answers = answers
        self._jobs = Jobs(settings)
        self.blueprint = Blueprint("jobs", __name__)
        self.blueprint.add_url_rule("/jobs/<id>", "show_job", self.show, methods=["GET"])
        self.blueprint.add_url_rule("/jobs/<id>", "end_job", self.end, methods=["DELETE"])

    async def begin(self, items: Sequence[Any]) -> Response:
        """Answer 202, or 200 with the result if it is there within `Prefer: wait`."""
        mesh = self._context.mesh
        live = {member.cls for member in await mesh.roster()}
        missing = sorted({item.cls for item in items} - live)
        if missing:
            raise NoReplica(f"no live replica has class {missing[0]}")
        # A job keeps its values, and then their factors, which are about as long.
        mesh.memory.store(sum(2 * len(item.value) + JOB_ITEM_BYTES for item in items))
        id = await self._jobs.begin(mesh, [Wanted(item.value, item.ttl, item.cls) for item in items])
        job = await self._wait(id)
        await mesh.confirm()
        if job is not None and job.state(mesh.now_ms()) == "done":
            return await self._result(job)
        response = jsonify({"id": id, "state": "waiting"})
        response.status_code = 202
        response.headers["Location"] = f"/jobs/{id}"
        response.headers["Preference-Applied"] = "respond-async"
        return response

    @_tagged
    async def show(self, id: str) -> Response:
        """How a job is: waiting, running, done (with its result) or failed (with what is known)."""
        mesh = self._context.mesh
        job = await self._jobs.get(mesh, id)
        if job is None:
            raise _unknown()
        await mesh.confirm()
        return await self._shown(job)

    @_tagged
    async def end(self, id: str) -> Response:
        """End a job; what it has stored before stays."""
        if not await self._jobs.end(self._context.mesh, id):
            raise _unknown()
        await self._context.mesh.confirm()
        return Response(status=204)

    async def _wait(self, id: str) -> Job | None:
        """Wait for a job as long as the client says; return it if the client says so."""
        mesh, asked = self._context.mesh, preferences.wait_ms()
        if asked is None:
            return None
        end_ms = mesh.now_ms() + min(asked, self._context.settings.max_wait_ms)
        while True:
            job = await self._jobs.get(mesh, id)
            if job is None or job.state(mesh.now_ms()) in {"done", "failed"} or mesh.now_ms() >= end_ms:
                return job
            await asyncio.sleep(LOOK_S)

    async def _shown(self, job: Job) -> Response:
        now_ms = self._context.mesh.now_ms()
        view, result = job.view(now_ms), job.result(now_ms)
        if result is None:
            return jsonify(view)
        array = Array()
        await array.extend(result, self._pace)
        return self._answers.respond(array, json.dumps(view)[:-1] + ', "result": ', "}")

    async def _result(self, job: Job) -> Response:
        array = Array()
        await array.extend(job.result(self._context.mesh.now_ms()) or [], self._pace)
        return self._answers.respond(array)


def _unknown() -> Problem:
    return Problem(404, "there is no such job, or it is no longer kept")
