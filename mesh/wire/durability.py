"""Waits until Redis replicas ("copies") have our writes; all callers that wait at the same time share one WAIT.

WAIT blocks its connection, so it has a connection of its own, and no other command waits behind it.
"""

from __future__ import annotations

import asyncio

from redis import exceptions as redis_errors

from mesh.errors import Unavailable
from mesh.wire.connection import Line


class Copies:
    """Confirms that copies have our writes. `run` serves the callers until it is cancelled."""

    def __init__(self, line: Line, key: str, *, keep_ms: int, copies: int, timeout_ms: int) -> None:
        self._line = line
        self._commands = (
            # WAIT covers the last write of its own connection and all writes before that. For a connection without a
            # write, Valkey only counts connected copies. So each WAIT follows a write.
            ("PEXPIRE", key, keep_ms),
            ("WAIT", copies, timeout_ms),
        )
        self._copies = copies
        self._lost = False
        self._asked = asyncio.Event()
        #: result of the next round: why the writes are not confirmed, or ""
        self._next = self._round()

    @staticmethod
    def _round() -> asyncio.Future[str]:
        return asyncio.get_running_loop().create_future()

    async def confirm(self) -> None:
        """Wait, for at most two rounds, until enough copies have all writes until now.

        Raises Unavailable when they do not confirm in time.
        """
        self._asked.set()
        # A cancelled caller must not cancel the others of its round.
        why_not = await asyncio.shield(self._next)
        if why_not:
            raise Unavailable(f"done, but {why_not}")

    async def run(self) -> None:
        """Run one round after the other while there are callers."""
        current = self._next
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                current, self._next = self._next, self._round()
                current.set_result(await self._ask())
        finally:
            for each in (current, self._next):
                if not each.done():
                    each.set_result("this replica left the mesh before copies of Redis confirmed it")

    async def _ask(self) -> str:
        """Return why the writes are not confirmed, or "".

        After a failed connection, the round fails and is not repeated: a new connection may be to another server, which
        never had the writes. So it confirms only callers that come after it.
        """
        try:
            if self._lost:
                await self._line.ask("PING")
                self._lost = False
                return "the connection to Redis was lost before a copy confirmed it"
            wrote, reached = await self._line.say(self._commands)
        except (redis_errors.RedisError, OSError) as error:
            self._lost = True
            return f"no copy of Redis could confirm it: {error}"
        if wrote != 1 or not isinstance(reached, int):
            return f"Redis cannot say whether copies have it: {wrote}, {reached}"
        if reached < self._copies:
            return f"only {reached} of {self._copies} copies of Redis confirmed it"
        return ""
