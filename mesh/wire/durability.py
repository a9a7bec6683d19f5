"""Waiting until copies of Redis have the writes of this process. Callers that wait at the same time share one WAIT.

The command WAIT blocks its connection, so it has a connection of its own.
"""

from __future__ import annotations

import asyncio

from redis import exceptions as redis_errors

from mesh.errors import Unavailable
from mesh.wire.connection import RedisConnection


class Durability:
    """Confirms that copies of Redis have what was written. `run` makes rounds until cancelled; a round is one WAIT."""

    def __init__(self, connection: RedisConnection, key: str, *, keep_ms: int, copies: int, timeout_ms: int) -> None:
        self._connection = connection
        self._commands = (
            # WAIT counts the copies that have the last write of its own connection. For a connection that has written
            # nothing, Valkey counts all connected copies. So a write comes before each WAIT.
            ("PEXPIRE", key, keep_ms),
            ("WAIT", copies, timeout_ms),
        )
        self._copies = copies
        self._lost = False
        self._asked = asyncio.Event()
        #: the result of the next round: why the writes are not confirmed, or ""
        self._next = self._round()

    @staticmethod
    def _round() -> asyncio.Future[str]:
        return asyncio.get_running_loop().create_future()

    async def confirm(self) -> None:
        """Wait until enough copies have all that is written by now: until the end of the next round that begins.

        Raises Unavailable if they do not confirm in time.
        """
        self._asked.set()
        # Shielded, because other callers wait for the same future when this one is cancelled.
        why_not = await asyncio.shield(self._next)
        if why_not:
            raise Unavailable(f"done, but {why_not}")

    async def run(self) -> None:
        """Make a round whenever somebody waits for one, until cancelled."""
        current = self._next
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                current, self._next = self._next, self._round()
                current.set_result(await self._wait())
        finally:
            for each in (current, self._next):
                if not each.done():
                    each.set_result("this replica left the mesh before copies of Redis confirmed it")

    async def _wait(self) -> str:
        """Make one round; return why the writes are not confirmed, or "".

        The first round after a lost connection confirms nothing: the new connection may lead to another server, which
        never got the writes.
        """
        try:
            if self._lost:
                await self._connection.execute("PING")
                self._lost = False
                return "the connection to Redis was lost before a copy confirmed it"
            wrote, reached = await self._connection.send(self._commands)
        except (redis_errors.RedisError, OSError) as error:
            self._lost = True
            return f"no copy of Redis could confirm it: {error}"
        if wrote != 1 or not isinstance(reached, int):
            return f"Redis cannot say whether copies have it: {wrote}, {reached}"
        if reached < self._copies:
            return f"only {reached} of {self._copies} copies of Redis confirmed it"
        return ""
