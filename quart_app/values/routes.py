"""The routes of /values: parse, ask, present."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import RootModel
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_querystring, document_request, document_response, tag

from mesh import Answer, Ask, Class, DeadlineExceeded, NoReplica
from quart_app.http.body import read_items
from quart_app.http.problems import Problem, from_mesh
from quart_app.service import Context
from quart_app.values import handlers
from quart_app.values.jobs import PUT, SMALL, Job, Jobs, Wanted
from quart_app.values.models import ClassesList, ItemsReader, JobBegun, Page, SetValueResponse
from quart_app.values.pool import FactorPool
from quart_app.values.settings import ValuesSettings

RESPOND_ASYNC = re.compile(r"(?:^|[,;\s])respond-async(?:$|[,;\s])")
WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})")
#: between two looks at a job that a client waits for
JOB_LOOK_S = 0.1


def routes(context: Context, settings: ValuesSettings, pool: FactorPool) -> Blueprint:
    """GET /classes, POST /values, GET /values/{prime}, and the jobs of `Prefer: respond-async`."""
    blueprint = Blueprint("values", __name__)
    create_request = ItemsReader(settings)
    values = create_request.type
    jobs = Jobs(settings)

    @blueprint.get("/classes")
    @tag(["values"])
    @document_response(ClassesList)
    async def classes() -> Response:
        """The classes that have a live replica."""
        members = await context.mesh.roster()
        return jsonify(sorted({member.cls for member in members}))

    @blueprint.post("/values")
    @tag(["values"])
    @document_request(RootModel[values])  # type: ignore[valid-type]
    @document_response(SetValueResponse)
    @document_response(JobBegun, 202)
    async def create_values() -> Response:
        """Factorise values and keep each with a replica of its class for its time to live."""
        items = await read_items(create_request, settings.max_items)
        if items and RESPOND_ASYNC.search(_preferences()):
            return await begin(items)
        factors = await _put(context, settings, items)
        return jsonify([{"value": item.value, "prime_factors": factors[item.value]} for item in items])

    @blueprint.get("/values/<prime>")
    @tag(["values"])
    @document_querystring(Page)
    @document_response(SetValueResponse)
    async def find_values(prime: str) -> Response:
        """Every value that has this prime as a factor, ascending; `limit` and `after` page."""
        number = await _prime(prime)
        arguments = request.args.to_dict()
        limit = _argument(arguments, "limit", settings.max_answer)
        after = _argument(arguments, "after", 0) or 0
        found = await _find(context, number, limit or settings.max_answer + 1, after)
        if limit is None and len(found) > settings.max_answer:
            raise Problem(422, f"there are more than {settings.max_answer} values; ask for them with ?limit=")
        response = jsonify([{"value": value, "prime_factors": factors} for value, factors in found])
        if limit is not None and len(found) == limit:
            response.headers["Link"] = f'</values/{number}?limit={limit}&after={found[-1][0]}>; rel="next"'
        return response

    async def begin(items: Sequence[Any]) -> Response:
        """202, or 200 with the result where it is there within `Prefer: wait`."""
        replica = context.mesh
        live = {member.cls for member in await replica.roster()}
        missing = sorted({item.cls for item in items} - live)
        if missing:
            raise NoReplica(f"no live replica has class {missing[0]}")
        id = await jobs.begin(replica, [Wanted(item.value, item.ttl, item.cls) for item in items])
        job = await _wait(id) if WAIT.search(_preferences()) else None
        await replica.confirm()
        if job is not None and job.state(replica.now_ms()) == "done":
            return jsonify(job.view(replica.now_ms())["result"])
        response = jsonify({"id": id, "state": "waiting"})
        response.status_code = 202
        response.headers["Location"] = f"/jobs/{id}"
        response.headers["Preference-Applied"] = "respond-async"
        return response

    async def _wait(id: str) -> Job | None:
        replica = context.mesh
        end_ms = replica.now_ms() + deadline_ms(context)
        while True:
            job = await jobs.get(replica, id)
            if job is None or job.state(replica.now_ms()) in {"done", "failed"} or replica.now_ms() >= end_ms:
                return job
            await asyncio.sleep(JOB_LOOK_S)

    @blueprint.get("/jobs/<id>")
    @tag(["values"])
    async def show_job(id: str) -> Response:
        """How a job is: waiting, running, done (with its result) or failed (with what is known)."""
        replica = context.mesh
        job = await jobs.get(replica, id)
        if job is None:
            raise Problem(404, "there is no such job, or no longer")
        await replica.confirm()
        return jsonify(job.view(replica.now_ms()))

    @blueprint.delete("/jobs/<id>")
    @tag(["values"])
    async def end_job(id: str) -> Response:
        """End a job; what it has stored before stays."""
        if not await jobs.end(context.mesh, id):
            raise Problem(404, "there is no such job, or no longer")
        await context.mesh.confirm()
        return Response(status=204)

    async def _prime(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > settings.max_digits:
            raise Problem(422, f"the prime is a number of at most {settings.max_digits} digits")
        number = int(text)
        if not await pool.is_prime(number, deadline_ms(context) / 1000):
            raise Problem(422, "the prime is not a prime")
        return number

    def _argument(arguments: Mapping[str, str], name: str, most: int) -> int | None:
        text = arguments.get(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > settings.max_digits or (most and int(text) > most):
            raise Problem(422, f"{name} is a number" + (f" up to {most}" if most else ""))
        number = int(text)
        if name == "limit" and number < 1:
            raise Problem(422, "limit is at least 1")
        return number

    return blueprint


def _preferences() -> str:
    """What the client prefers (RFC 7240), of all the headers that say so."""
    return ",".join(request.headers.getlist("Prefer"))


def deadline_ms(context: Context) -> int:
    """How long this request may take: `Prefer: wait=N` (seconds), up to what is allowed."""
    asked = WAIT.search(_preferences())
    if asked is None:
        return context.mesh.settings.deadline_ms
    return max(1, min(int(asked[1]) * 1000, context.settings.max_wait_ms))


async def _put(context: Context, settings: ValuesSettings, items: Sequence[Any]) -> dict[int, list[int]]:
    """The factors of every value once all are stored. Of items with the same value the last one counts."""
    last = {item.value: item for item in items}
    asks = _entries(last.values(), settings.chunk, {item.cls for item in items})
    if not asks:
        return {}
    answers = await context.mesh.ask(asks, deadline_ms=deadline_ms(context))
    factors = {value: found for answer in answers for body in answer.bodies for value, found in body["factors"]}
    missing = [value for value in last if value not in factors]
    if missing:
        raise _failure(answers, missing)
    return factors


def _entries(items: Any, chunk: int, classes: set[str]) -> list[Ask]:
    """Requests to the classes: small values in chunks, a large one alone, so that it holds nobody up."""
    small: dict[str, list[dict[str, int]]] = {cls: [] for cls in classes}
    groups: list[tuple[str, list[dict[str, int]]]] = []
    for item in items:
        entry = {"value": item.value, "ttl": item.ttl}
        if item.value < SMALL:
            small[item.cls].append(entry)
        else:
            groups.append((item.cls, [entry]))
    for cls, entries in small.items():
        groups += [(cls, entries[i : i + chunk]) for i in range(0, len(entries), chunk)]
    return [Ask(Class(cls), PUT, {"items": entries}) for cls, entries in groups]


def _failure(answers: Sequence[Answer], missing: list[int]) -> Problem:
    """The problem that says why these values are missing: whatever is worse than lateness first."""
    errors = [answer.error for answer in answers if answer.error is not None]
    worst = next((error for error in errors if not isinstance(error, DeadlineExceeded)), None)
    problem = from_mesh(worst or (errors[0] if errors else DeadlineExceeded()))
    problem.facts["missing"] = missing[:1000]
    return problem


async def _find(context: Context, prime: int, limit: int, after: int) -> list[tuple[int, list[int]]]:
    """What every live database has, each value once: should two have it, the newer request counts."""
    body = {"prime": prime, "limit": limit, "after": after}
    answers = await context.mesh.gather(handlers.FIND, body, deadline_ms=deadline_ms(context))
    best: dict[int, tuple[str, list[int]]] = {}
    for answer in answers.values():
        for value, id, factors in answer["found"]:
            if value not in best or _order(best[value][0]) < _order(id):
                best[value] = (id, factors)
    return [(value, best[value][1]) for value in sorted(best)[:limit]]


def _order(id: str) -> tuple[int, int]:
    milliseconds, _, sequence = id.partition("-")
    return int(milliseconds), int(sequence)
