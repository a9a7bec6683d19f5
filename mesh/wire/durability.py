"""Waiting until copies of Redis have the writes of this process. Callers that wait at the same time share one WAIT.

The command WAIT blocks its connection, so it has a connection of its own.
"""

from __future__ import annotations

import asyncio

from redis import exceptions as redis_errors

from mesh.errors import Unavailable
from mesh.wire.connection import RedisConnection


class Durability:
    """Confirms that copies of Redis have what was written. `run` makes rounds until cancelled; a round is one WAIT.

    `key` is a key that exists while `run` does, and whose owner renews it with the expiry `keep_ms`. `copies` is how
    many copies must confirm, and `timeout_ms` how long a round waits for them.
    """

    def __init__(self, connection: RedisConnection, key: str, *, keep_ms: int, copies: int, timeout_ms: int) -> None:
        self._connection = connection
        self._commands = (
            # WAIT counts the copies that have the last write of its own connection. For a connection that has written
            # nothing, Valkey counts all connected copies. So a write comes before each WAIT.
            # The write must change nothing: it sets an expiry that each renewal of `key` sets, too.
            ("PEXPIRE", key, keep_ms),
            ("WAIT", copies, timeout_ms),
        )
        self._copies = copies
        self._connection_lost = False
        self._round_wanted = asyncio.Event()
        #: done when the round that begins next has ended: with why the writes are not confirmed, or with ""
        self._next_outcome = self._new_outcome()

    @staticmethod
    def _new_outcome() -> asyncio.Future[str]:
        return asyncio.get_running_loop().create_future()

    async def confirm(self) -> None:
        """Wait until enough copies have all that is written by now: until the end of the next round that begins.

        Raises Unavailable if they do not confirm in time.
        """
        self._round_wanted.set()
        # Shielded, because other callers wait for the same future when this one is cancelled.
        reason = await asyncio.shield(self._next_outcome)
        if reason:
            raise Unavailable(f"done, but {reason}")

    async def run(self) -> None:
        """Make a round whenever somebody waits for one, until cancelled."""
        present_outcome = self._next_outcome
        try:
            while True:
                await self._round_wanted.wait()
                self._round_wanted.clear()
                # Callers that come during this round may have written after its WAIT, so they wait for the next one.
                present_outcome, self._next_outcome = self._next_outcome, self._new_outcome()
                present_outcome.set_result(await self._wait())
        finally:
            for outcome in (present_outcome, self._next_outcome):
                if not outcome.done():
                    outcome.set_result("this replica left the mesh before copies of Redis confirmed it")

    async def _wait(self) -> str:
        """Make one round; return why the writes are not confirmed, or "".

        The first round after a lost connection confirms nothing: the new connection may lead to another server, which
        never got the writes.
        """
        try:
            if self._connection_lost:
                await self._connection.execute("PING")  # connects again
                self._connection_lost = False
                return "the connection to Redis was lost before a copy confirmed it"
            pexpire_reply, wait_reply = await self._connection.send(self._commands)
        except (redis_errors.RedisError, OSError) as error:
            self._connection_lost = True
            return f"no copy of Redis could confirm it: {error}"
        # PEXPIRE answers 1 if it has written. Otherwise, or after an error, WAIT says nothing about the writes.
        if pexpire_reply != 1 or not isinstance(wait_reply, int):
            return f"Redis cannot say whether copies have it: {pexpire_reply}, {wait_reply}"
        if wait_reply < self._copies:
            return f"only {wait_reply} of {self._copies} copies of Redis confirmed it"
        return ""
