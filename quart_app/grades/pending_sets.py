"""Appends changes (`/set`) to the log. Each change waits until this replica applies the change's own entry."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError, ResponseError

from mesh import MeshError, Unavailable
from mesh.journal import Log, Position
from quart_app.grades import entries
from quart_app.grades.known_state import KnownState
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.settings import GradesSettings
from quart_app.grades.storage import Storage

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class PendingSet:
    """One change that waits for its entry."""

    user_id: str
    #: done with the user's grade when the entry is applied
    answer: asyncio.Future[UserGrade]
    #: position of the entry; None while Redis has not confirmed the append
    position: Position | None = None


class PendingSets:
    """All changes under way. The answer to a change is the record as it is right after the change's own entry."""

    def __init__(self, settings: GradesSettings) -> None:
        self._settings = settings
        #: by the name that this replica gives to the entry of the change
        self._pending: dict[str, PendingSet] = {}

    def __len__(self) -> int:
        return len(self._pending)

    async def set(self, update: GradeUpdate, grades_log: Log, reader_at: Position) -> UserGrade:
        """Append a change, wait until its entry is applied, and return the user's grade then. Raises Unavailable.

        `reader_at` is how far this replica has read the log. Redis appends nothing if the log lacks these entries.
        """
        if len(self._pending) >= self._settings.set_in_flight:
            raise Unavailable(
                f"{len(self._pending)} changes are already under way; nothing was changed, retry after 1 s",
                retry_after=1,
            )
        write_name = secrets.token_hex(8)  # 64 random bits, so that no other entry has this name
        pending = self._pending[write_name] = PendingSet(update.user_id, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(self._settings.set_timeout_ms / 1000):
                pending.position = await self._append_change(update, grades_log, reader_at, write_name)
                return await pending.answer
        except TimeoutError as error:
            raise _unconfirmed_error(pending.position) from error
        finally:
            del self._pending[write_name]

    def confirm(self, write_name: str, storage: Storage) -> None:
        """Answer the change of this name, whose entry has just been applied to `storage`."""
        pending = self._pending.get(write_name)
        if pending is not None:
            _answer_with_grade(pending, storage)

    def confirm_up_to(self, state: KnownState) -> None:
        """Answer the changes whose entries a restored state contains."""
        for pending in self._pending.values():
            position = pending.position
            if position is not None and position.log == state.position.log and position.number <= state.position.number:
                _answer_with_grade(pending, state.storage)

    async def _append_change(
        self, update: GradeUpdate, grades_log: Log, reader_at: Position, write_name: str
    ) -> Position | None:
        """Append a change and return its position, or None if Redis may or may not have appended the change.

        Redis appends nothing after `within_ms`, because the caller has given up by then. Raises Unavailable if Redis
        certainly has not appended the change.
        """
        body, within_ms = entries.body_of_set(update), self._settings.set_timeout_ms
        try:
            return await grades_log.append(
                entries.SET, body, reader_at=reader_at, write=write_name, within_ms=within_ms
            )
        except (MeshError, ResponseError) as error:  # Redis has answered that it refuses
            raise Unavailable(f"nothing was changed: {error}", retry_after=1) from error
        except (RedisError, OSError) as error:
            # Redis may have appended the entry before the connection broke. If so, this replica will read the entry
            # from the log, and `confirm` answers the change.
            log.warning("append not confirmed", reason=str(error))
            return None


def _answer_with_grade(pending: PendingSet, storage: Storage) -> None:
    grade = storage.get(pending.user_id)
    # The answer is done already if its caller was cancelled.
    if grade is not None and not pending.answer.done():
        pending.answer.set_result(grade)


def _unconfirmed_error(position: Position | None) -> Unavailable:
    # None: Redis may or may not have appended the change.
    if position is not None:
        return Unavailable("the change is recorded, but this replica has not applied it in time", recorded=position.id)
    return Unavailable("the log did not confirm the change in time; it is safe to send it again", retry_after=1)
