"""The HTTP routes of the grades: reads on the public port, changes and backups on the private one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import wraps
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_querystring, document_request, document_response, security_scheme, tag

from quart_app.grades.backup import MEDIA_TYPE, Header
from quart_app.grades.known_state import backup_chunks
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.replication import Replication
from quart_app.grades.settings import GradesSettings
from quart_app.grades.storage import FrozenRecords
from quart_app.http.body import read_json
from quart_app.http.openapi import BASIC
from quart_app.http.problems import Problem
from quart_app.security.basic import BasicAuth

_UPDATE = TypeAdapter(GradeUpdate)
_tagged = tag(["grades"])
_needs_password = security_scheme([{BASIC: []}])
#: About how many bytes an entry of the log takes in Redis: counted for each change before it is appended. Too small a
#: number lets Redis fill up, too large a one refuses changes early.
ENTRY_BYTES = 300


class UserQuery(BaseModel):
    """The query string that names a user."""

    user_id: str = Field(description="the id of the user")


class GradesRoutes:
    """The routes of one replica, one method each.

    `store_room` is `Memory.store`: it counts bytes that are about to be stored, and raises Busy if there is no room.
    """

    def __init__(self, replication: Replication, settings: GradesSettings, store_room: Callable[[int], None]) -> None:
        self._replication = replication
        self._store_room = store_room
        self._settings = settings
        self._backups_in_progress = 0
        self.auth = BasicAuth("grades", settings.username, settings.password)
        self.public = Blueprint("grades", __name__)
        self.public.add_url_rule("/get", "get", self.get, methods=["GET"])
        self.private = Blueprint("grades_private", __name__)
        self.private.add_url_rule("/set", "set", self._authenticated(self.set), methods=["POST"])
        self.private.add_url_rule("/backup", "backup", self._authenticated(self.backup), methods=["GET"])

    @_tagged
    @document_querystring(UserQuery)
    @document_response(UserGrade)
    async def get(self) -> Response:
        """Return a user's grade; a field that was never set is 0.

        404 for an unknown user, 503 while the grades are being restored.
        """
        user_ids = request.args.getlist("user_id")
        if len(user_ids) != 1 or not user_ids[0]:
            raise Problem(400, "give one user_id: /get?user_id=…")
        grade = self._replication.get(user_ids[0])
        if grade is None:
            raise Problem(404, "this user has no grade")
        return jsonify(grade.model_dump())

    @_tagged
    @_needs_password
    @document_request(GradeUpdate)
    @document_response(UserGrade)
    async def set(self) -> Response:
        """Set some fields of a user's grade on every replica; return the merged grade.

        An absent field stays unchanged, 0 sets a field to 0. Needs Basic authentication.
        """
        update = await read_json(_UPDATE)
        self._store_room(ENTRY_BYTES)
        grade = await self._replication.set(update)
        return jsonify(grade.model_dump())

    @_tagged
    @_needs_password
    async def backup(self) -> Response:
        """Return all grades of this moment as csv.gz, with the log's identity and position.

        Needs Basic authentication.
        """
        if self._backups_in_progress >= self._settings.backups_at_once and request.method != "HEAD":
            raise Problem(
                503,
                "this replica is already giving as many backups as it may; ask another one, or retry after 1 s",
                retry_after=1,
            )
        header, records = self._replication.header_and_records()
        # HEAD gives no backup, so it is not counted.
        body: Any = b"" if request.method == "HEAD" else self._body_chunks(header, records)
        response = Response(body, content_type=MEDIA_TYPE, headers=_headers(header))
        response.timeout = self._settings.backup_timeout_s  # in place of the RESPONSE_TIMEOUT of Quart
        return response

    async def _body_chunks(self, header: Header, records: FrozenRecords) -> AsyncIterator[bytes]:
        # The backup is counted from its first chunk, not earlier. If a response is never sent, its body is never
        # closed, and its backup would count for ever.
        self._backups_in_progress += 1
        try:
            async with aclosing(backup_chunks(header, records)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._backups_in_progress -= 1

    def _authenticated(self, view: Callable[[], Awaitable[Response]]) -> Callable[[], Awaitable[Response]]:
        """Return the view behind Basic authentication."""

        @wraps(view)
        async def checked_view() -> Response:
            await self.auth.check(request)
            return await view()

        return checked_view


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
