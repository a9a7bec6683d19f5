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
            # It sets an expiry that each renewal of `key` sets, too.
            ("PEXPIRE", key, keep_ms),
            ("WAIT", copies, timeout_ms),
        )
        self._copies = copies
        self._connection_lost = False
        self._round_wanted = asyncio.Event()
        #: done when the round that begins next has ended. The result says why the writes are not confirmed, or is "".
        self._next_result = self._new_result()

    @staticmethod
    def _new_result() -> asyncio.Future[str]:
        return asyncio.get_running_loop().create_future()

    async def confirm(self) -> None:
        """Wait until enough copies have all that is written by now: until the end of the next round that begins.

        Raises Unavailable if they do not confirm in time.
        """
        self._round_wanted.set()
        # Shielded, because other callers wait for the same future when this one is cancelled.
        why_not = await asyncio.shield(self._next_result)
        if why_not:
            raise Unavailable(f"done, but {why_not}")

    async def run(self) -> None:
        """Make a round whenever somebody waits for one, until cancelled."""
        present_result = self._next_result
        try:
            while True:
                await self._round_wanted.wait()
                self._round_wanted.clear()
                # Callers that come during this round have written after its WAIT, so they wait for the next result.
                present_result, self._next_result = self._next_result, self._new_result()
                present_result.set_result(await self._wait())
        finally:
            for result in (present_result, self._next_result):
                if not result.done():
                    result.set_result("this replica left the mesh before copies of Redis confirmed it")

    async def _wait(self) -> str:
        """Make one round; return why the writes are not confirmed, or "".

        The first round after a lost connection confirms nothing: the new connection may lead to another server, which
        never got the writes.
        """
        try:
            if self._connection_lost:
                await self._connection.execute("PING")
                self._connection_lost = False
                return "the connection to Redis was lost before a copy confirmed it"
            expiry_set, confirming_copies = await self._connection.send(self._commands)
        except (redis_errors.RedisError, OSError) as error:
            self._connection_lost = True
            return f"no copy of Redis could confirm it: {error}"
        # PEXPIRE answers 1 if it has written. Otherwise, or after an error, WAIT says nothing about the writes.
        if expiry_set != 1 or not isinstance(confirming_copies, int):
            return f"Redis cannot say whether copies have it: {expiry_set}, {confirming_copies}"
        if confirming_copies < self._copies:
            return f"only {confirming_copies} of {self._copies} copies of Redis confirmed it"
        return ""
