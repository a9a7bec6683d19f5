"""The routes of the grades: parse, call, present."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import wraps
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_querystring, document_request, document_response, tag

from quart_app.grades.backup import MEDIA_TYPE, Header
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.replication import Replication, stream
from quart_app.grades.settings import GradesSettings
from quart_app.grades.storage import Frozen
from quart_app.http.body import read_json
from quart_app.http.problems import Problem
from quart_app.security.basic import BasicAuth

_UPDATE = TypeAdapter(GradeUpdate)
_tagged = tag(["grades"])


class UserQuery(BaseModel):
    """Whose grade."""

    user_id: str = Field(description="the user's id, urlencoded")


class GradesRoutes:
    """One method per route; reading is public, writing and backups are private."""

    def __init__(self, replication: Replication, settings: GradesSettings) -> None:
        self._replication = replication
        self._settings = settings
        self._backups = 0
        self.auth = BasicAuth("grades", settings.username, settings.password)
        self.public = Blueprint("grades", __name__)
        self.public.add_url_rule("/get", "get", self.get, methods=["GET"])
        self.private = Blueprint("grades_private", __name__)
        self.private.add_url_rule("/set", "set", self._for_known(self.set), methods=["POST"])
        self.private.add_url_rule("/backup", "backup", self._for_known(self.backup), methods=["GET"])

    @_tagged
    @document_querystring(UserQuery)
    @document_response(UserGrade)
    async def get(self) -> Response:
        """A user's grade; a field that nobody set is 0. 404 for a user that nobody set, 503 while
        restoring."""
        given = request.args.getlist("user_id")
        if len(given) != 1 or not given[0]:
            raise Problem(400, "say whose grade: /get?user_id=…, once")
        grade = self._replication.get(given[0])
        if grade is None:
            raise Problem(404, "there is no grade of this user")
        return jsonify(grade.model_dump())

    @_tagged
    @document_request(GradeUpdate)
    @document_response(UserGrade)
    async def set(self) -> Response:
        """Set some fields of a user's grade, on every replica; the merged grade.

        A field that is absent stays as it is, 0 sets it to 0. Needs Basic authentication.
        """
        grade = await self._replication.set(await read_json(_UPDATE))
        return jsonify(grade.model_dump())

    @_tagged
    async def backup(self) -> Response:
        """All grades of this moment as csv.gz, with the log's identity and position. Needs Basic
        authentication."""
        if self._backups >= self._settings.backups_at_once and request.method != "HEAD":
            raise Problem(503, "enough backups are being made; ask again, or ask another replica", retry_after=1)
        header, state = self._replication.describe()
        body: Any = b"" if request.method == "HEAD" else self._stream(header, state)
        response = Response(body, content_type=MEDIA_TYPE, headers=_headers(header))
        response.timeout = self._settings.backup_timeout_s
        return response

    async def _stream(self, header: Header, state: Frozen) -> AsyncIterator[bytes]:
        # Counted from its first step on: a response that is never begun would never be ended either.
        self._backups += 1
        try:
            async with aclosing(stream(header, state)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._backups -= 1

    def _for_known(self, view: Callable[[], Awaitable[Response]]) -> Callable[[], Awaitable[Response]]:
        """The view behind Basic authentication."""

        @wraps(view)
        async def guarded() -> Response:
            await self.auth.check(request)
            return await view()

        return guarded


def _headers(header: Header) -> dict[str, str]:
    return {
        "Content-Disposition": f'attachment; filename="{header.filename}"',
        "Cache-Control": "no-store",
        "Backup-Time": header.time,
        "Backup-Count": str(header.count),
        "Backup-Digest": header.digest,
        "Log-Identity": header.log,
        "Log-Position": str(header.number),
        "Log-Entry": header.id,
    }
