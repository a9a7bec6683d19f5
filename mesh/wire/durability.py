"""What was acknowledged is on copies of Redis, too: one WAIT for all who ask while the one before is under way.

WAIT holds up its connection, so it has one of its own: nothing else that a replica says waits behind it.
"""

from __future__ import annotations

import asyncio

from redis import exceptions as redis_errors

from mesh.errors import Unavailable
from mesh.wire.connection import Line


class Copies:
    """Confirms that copies have what was written. `run` asks until cancelled."""

    def __init__(self, line: Line, key: str, *, keep_ms: int, copies: int, timeout_ms: int) -> None:
        self._line = line
        self._commands = (
            # WAIT speaks for what its own connection wrote, and all that came before. From one that wrote nothing, as a
            # new one, Valkey is content with copies that are connected: so each comes with something that is written.
            ("PEXPIRE", key, keep_ms),
            ("WAIT", copies, timeout_ms),
        )
        self._copies = copies
        self._lost = False
        self._asked = asyncio.Event()
        #: of the next round: why what was written is not confirmed, or ""
        self._next = self._round()

    @staticmethod
    def _round() -> asyncio.Future[str]:
        return asyncio.get_running_loop().create_future()

    async def confirm(self) -> None:
        """Wait until as many copies as asked for have all that is written by now: two rounds at most.

        Raises Unavailable where they do not say so in time.
        """
        self._asked.set()
        # The others of this round go on waiting when one of them is cancelled.
        why_not = await asyncio.shield(self._next)
        if why_not:
            raise Unavailable(f"done, but {why_not}")

    async def run(self) -> None:
        """Ask round after round, for as long as somebody wants to know."""
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
                    each.set_result("this replica has left the mesh before copies of Redis confirmed it")

    async def _ask(self) -> str:
        """Why what was written is not confirmed, or "".

        Nothing is asked again where the connection fails, and a new one speaks for nobody who asked before it was
        there: it may be to another server, which never had what was written.
        """
        try:
            if self._lost:
                await self._line.ask("PING")
                self._lost = False
                return "the connection to Redis was lost before a copy confirmed it"
            wrote, reached = await self._line.say(self._commands)
        except (redis_errors.RedisError, OSError) as error:
            self._lost = True
            return f"no copy of Redis could be asked to confirm it: {error}"
        if wrote != 1 or not isinstance(reached, int):
            return f"Redis cannot say whether copies have it: {wrote}, {reached}"
        if reached < self._copies:
            return f"only {reached} of {self._copies} copies of Redis confirmed it"
        return ""
