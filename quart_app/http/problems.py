"""Every error as `application/problem+json` (RFC 9457). The only module that turns errors into HTTP statuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from pydantic import ValidationError
from quart import Quart, Response
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException

import mesh
from mesh import failures

log = structlog.get_logger(__name__)

#: Status -> the title of a problem with this status.
TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Content too large",
    415: "Unsupported media type",
    421: "Misdirected request",
    422: "Content not valid",
    429: "Too many requests",
    431: "Request header fields too large",
    500: "Internal error",
    501: "Not implemented",
    502: "Provider failed",
    503: "Service unavailable",
    504: "Deadline exceeded",
}

#: Class of an error -> the status of its answer. A class that is not here has the status of its nearest ancestor.
STATUS_OF: dict[type[mesh.MeshError], int] = {
    mesh.NoReplica: 404,
    mesh.Busy: 503,
    mesh.Contended: 503,
    mesh.Unavailable: 503,
    mesh.LeaseLost: 503,
    mesh.Incomplete: 503,
    mesh.Limited: 429,
    mesh.Paused: 503,
    mesh.GivenUp: 503,
    mesh.Unserved: 503,
    mesh.SetupError: 503,
    mesh.Cancelled: 503,  # nothing of the request was applied, so a client may send it again
    mesh.DeadlineExceeded: 504,
    mesh.InvalidBody: 422,
    mesh.KeyReused: 422,
    # Mistakes in our own code, or two releases that disagree: a new try would fail in the same way.
    mesh.InvalidReply: 500,
    mesh.ManyParts: 500,
    mesh.UsageError: 500,
}


class ProblemResponse(Response):
    """The answer that a problem becomes. `RequestLog.write` gets `detail` and `is_logged_elsewhere` from it."""

    detail = ""
    is_logged_elsewhere = False


class Problem(Exception):
    """An answer that is an error; raise it anywhere below a route.

    Each of `errors` is `{"pointer": "/0/value", "message": "..."}`. `retry_after` is in seconds. `facts` become further
    members of the answer. If a problem `is_logged_elsewhere`, another line of the log has it already. Then the line of
    its request is only for debugging.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        is_logged_elsewhere: bool = False,
        **facts: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        self.is_logged_elsewhere = is_logged_elsewhere
        self.facts = facts

    def document(self) -> bytes:
        """Return the problem as JSON."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            **self.facts,
        }
        if self.errors:
            body["errors"] = self.errors
        return json.dumps(body).encode()

    def response(self) -> Response:
        """Return the answer to a client."""
        answer = ProblemResponse(self.document(), self.status, content_type="application/problem+json")
        answer.detail, answer.is_logged_elsewhere = self.detail, self.is_logged_elsewhere
        answer.headers.update(self.headers)
        if self.retry_after is not None:
            # The header has whole seconds. 0 would ask the client to repeat its request at once.
            answer.headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return answer


def from_mesh(error: mesh.MeshError) -> Problem:
    """Return the problem for a failure of the mesh; the error's facts become members of the answer."""
    # An error may bring a status of its own, such as 429 for too many wrong passwords.
    status = error.facts.get("status") or _status_of(type(error))
    facts = {name: value for name, value in error.facts.items() if name not in {"retry_after", "status"}}
    retry_after = error.retry_after
    if retry_after is None and status == 503:  # nothing says how long the reason lasts
        retry_after = 1
    return Problem(status, error.detail, retry_after=retry_after, **facts)


def _status_of(error_class: type[mesh.MeshError]) -> int:
    # `default` is for a class without an ancestor in STATUS_OF. A service's own refusal has a code of its own and gets
    # 409. A 503 would ask the client to repeat a request that the service would refuse again. A plain Refused gets 503:
    # it may stand for an error of another release, which this one does not know (`mesh.errors.from_wire`).
    default = 409 if issubclass(error_class, mesh.Refused) and error_class.code != mesh.Refused.code else 503
    return next((STATUS_OF[ancestor] for ancestor in error_class.__mro__ if ancestor in STATUS_OF), default)


def from_validation(error: ValidationError, first_index: int = 0) -> Problem:
    """Return a problem that names each wrong place with a JSON pointer (RFC 6901), up to 100 of them.

    If only a slice of a list was checked, `first_index` is the index of the slice's first item in the list.
    """
    # Describing more than 100 would make a longer answer, and hold the event loop for longer.
    errors = [
        {"pointer": pointer(_with_offset(item["loc"], first_index)), "message": item["msg"]}
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:100]
    ]
    return Problem(422, f"{error.error_count()} of the values are not valid", errors=errors)


def _with_offset(path: Sequence[int | str], offset: int) -> Sequence[int | str]:
    """Return the path of a value in a list, if `path` is its path in the slice that begins at this offset."""
    return (path[0] + offset, *path[1:]) if offset and path and isinstance(path[0], int) else path


def pointer(path: Sequence[int | str]) -> str:
    """Return the JSON pointer of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def install(app: Quart) -> None:
    """Let an application answer every error with a problem document."""

    @app.errorhandler(Problem)
    async def problem(error: Problem) -> Response:
        return error.response()

    @app.errorhandler(mesh.MeshError)
    async def mesh_error(error: mesh.MeshError) -> Response:
        return from_mesh(error).response()

    @app.errorhandler(RedisError)
    async def redis_error(error: RedisError) -> Response:
        translated = failures.translate(error)
        return await unexpected(error) if translated is None else from_mesh(translated).response()

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        # `code` is the HTTP status here. An answer 405 must name the methods of the route (RFC 9110).
        headers = dict(error.get_headers()) if error.code == 405 else {}
        allow = {"Allow": headers["Allow"]} if "Allow" in headers else None
        detail = error.description or TITLES.get(error.code or 500, "Error")
        return Problem(error.code or 500, detail, headers=allow).response()

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        log.exception("a request failed unexpectedly", exc_info=error)
        # `Application.handle_request` adds the id to the answer, as the header X-Request-ID.
        return Problem(500, "internal error; the server log has the details under this request id").response()
