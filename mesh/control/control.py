"""Acts on a running mesh: pause and resume an operation, cancel a request, drain a replica.

    pause    calls of the operation are refused with Paused; requests that nobody waits for wait in mesh:later
    cancel   a request that is not answered yet; its caller gets Cancelled
    drain    a replica finishes what it works on, and leaves

Each act is one script, which also adds the act to `mesh:audit`. No replica takes part in the act. With their next
renewal, within half a second or so, replicas learn which operations are paused, and whether they are to drain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh import keys, roster
from mesh.dead.letters import ID, Actor
from mesh.errors import Cancelled, Refused
from mesh.later.options import OPTIONS
from mesh.requests.protocol import error_body
from mesh.settings import MeshSettings
from mesh.wire.codec import encode
from mesh.wire.script import Script

#: The acts of operators, each with an entry in the audit log. PAUSE also resumes an operation. CANCEL answers the
#: caller of the request. With the other script CANCEL, in `mesh/later/waking.py`, a sender takes back its own request.
PAUSE = Script.beside(__file__, "pause.lua")
CANCEL = Script.beside(__file__, "cancel.lua", *OPTIONS)
DRAIN = Script.beside(__file__, "drain.lua")

#: The key that asks a replica to drain expires after this time. A live replica reads it with its next renewal. After
#: a shorter time, the key could be gone when the renewals of a replica succeed again. A longer one
#: keeps the key of a dead replica for longer.
DRAIN_HOLDS_MS = 60_000
#: Longest name of an operation that an operator can pause, so that `mesh:paused` and the audit log stay small. An
#: operation with a longer name cannot be paused.
MOST_NAME_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class PausedOperation:
    """An operation that is paused, since when (ms of Redis's clock) and by whom."""

    op: str
    since_ms: int
    actor: str


class Control:
    """The acts of an operator, over a redis-py client of the bus database with `decode_responses`."""

    def __init__(self, redis: Redis, settings: MeshSettings) -> None:
        self._redis = redis
        self._streams = keys.request_streams(settings.classes, settings.databases)

    async def pause(self, op: str, actor: Actor) -> bool:
        """Pause an operation; return False if it was paused already. Raises Refused if `op` cannot be a name."""
        return await self._set_paused(op, actor, is_paused=True)

    async def resume(self, op: str, actor: Actor) -> bool:
        """Resume an operation; return False if it was not paused. Raises Refused if `op` cannot be a name."""
        return await self._set_paused(op, actor, is_paused=False)

    async def _set_paused(self, op: str, actor: Actor, *, is_paused: bool) -> bool:
        if not op or len(op) > MOST_NAME_CHARACTERS or not op.isprintable():
            raise Refused(f"{op!r:.50} is not the name of an operation, such as values.put")
        words = (int(is_paused), op, actor.name, actor.source, keys.AUDIT_KEPT)
        return bool(await PAUSE.run(self._redis, [keys.PAUSED, keys.AUDIT, keys.parked(op), keys.LATER], *words))

    async def paused(self) -> list[PausedOperation]:
        """Return the operations that are paused."""
        # operation -> "<ms> <actor>". If somebody has written another text by hand, nobody knows since when: 0.
        texts: Any = await self._redis.hgetall(keys.PAUSED)
        return [
            PausedOperation(op, int(since) if since.isdecimal() else 0, actor)
            for op, (since, _, actor) in sorted((op, text.partition(" ")) for op, text in texts.items())
        ]

    async def cancel(self, id: str, actor: Actor) -> tuple[str, str] | None:
        """Cancel a request by the id of its entry; return its stream and operation, or None if no stream has it.

        Raises Refused if `id` is not the id of an entry.
        """
        if not ID.fullmatch(id):
            raise Refused(f"{id!r:.50} is not the id of a request, such as 1700000000000-0")
        body = encode(error_body(Cancelled("an operator cancelled this request")))
        words = (id, actor.name, actor.source, keys.AUDIT_KEPT, Cancelled.code, body)
        cancelled = await CANCEL.run(self._redis, [keys.BOOKS, keys.AUDIT, *self._streams], *words)
        return (str(cancelled[0]), str(cancelled[1])) if cancelled else None  # the answer of cancel.lua

    async def drain(self, replica: str, actor: Actor) -> bool:
        """Ask a replica, by its name, to drain and leave; return False if it is not live or is leaving already."""
        members = [member for member in await roster.read_directly(self._redis) if member.replica == replica]
        if not members:
            return False
        words = (replica, DRAIN_HOLDS_MS, actor.name, actor.source, keys.AUDIT_KEPT, members[0].database)
        return bool(await DRAIN.run(self._redis, [keys.AUDIT], *words))
