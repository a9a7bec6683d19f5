"""What the live replicas serve and which release they are, as far as a process must know before it sends something.

An operation that no live replica serves is refused at its caller. So is an option that an older live release would
misread: it is refused until the last replica of that release has left.

A replica's roster row has two words for this: `serves`, the digest of its table of operations, and `reads`, the newest
level of entries that its release understands. A process looks at most once a second, and only when it sends what it
does not serve itself, or uses such an option.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Collection, Iterable
from typing import Any

import structlog
from redis import exceptions as redis_errors

from mesh import keys
from mesh.errors import OlderRelease, Unserved
from mesh.wire.link import Link
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

SERVED = Script.beside(__file__, "served.lua")
SERVES = Script.beside(__file__, "serves.lua")

#: Levels of entries. An option has a level, and may be used while every live release understands this level. Releases
#: before the first level have none in their rows.
LATER = 1
ONCE = 2
LIMITS = 3
#: The newest level that this release understands.
READS = LIMITS
#: By level: the options that need it, as callers write them.
OPTIONS = {LATER: "after= and at=", ONCE: "key=", LIMITS: "limit="}

#: Knowledge that is older is looked up again.
FRESH_S = 1.0
#: Longest wait for the lookup. Without an answer nothing is refused here.
WAIT_S = 1.0


class Directory:
    """What one process knows of the others. `own` are the operations that it serves itself."""

    def __init__(self, link: Link, own: Collection[str]) -> None:
        self._link = link
        self._own = frozenset(own)
        self._served: frozenset[str] = frozenset()
        #: whether `_served` is all that is served
        self._is_complete = False
        #: level, replica, database and version of the oldest live release
        self._oldest: tuple[int, str, str, str] = (0, "", "", "")
        self._looked_at = float("-inf")
        self._looking: asyncio.Future[Any] | None = None

    def allows(self, ops: Iterable[str], level: int = 0) -> bool:
        """Return whether it is known without a lookup that these operations are served, and the level understood."""
        if level and (level > self._oldest[0] or time.monotonic() - self._looked_at > FRESH_S):
            return False
        return all(map(self.knows, ops))

    def knows(self, op: str) -> bool:
        """Return whether it is known without a lookup that an operation is served."""
        return op in self._own or (op in self._served and time.monotonic() - self._looked_at <= FRESH_S)

    async def check(self, ops: Iterable[str], level: int = 0) -> None:
        """Raise Unserved for an operation that nobody serves, and OlderRelease for a level that somebody misreads."""
        names = list(ops)
        if self.allows(names, level) or not await self._look():
            return
        if level > self._oldest[0]:
            raise _older(level, *self._oldest[1:])
        known = self._own | self._served
        for op in names:
            if op not in known and self._is_complete:
                raise unserved(op, known)

    async def understands(self, level: int) -> bool:
        """Return whether every live replica understands this level; False where that cannot be found out."""
        return self.allows((), level) or (await self._look() and level <= self._oldest[0])

    async def is_served(self, op: str, cls: str, *, patient: bool) -> bool:
        """Look up whether a live replica of a class serves an operation.

        With `patient`, one that is expected back may serve it, too. Raises LeaseLost, redis-py's errors.
        """
        return bool(await self._link.script(SERVES, [keys.SERVED], keys.MOST_DATABASES, cls, op, int(patient)))

    async def _look(self) -> bool:
        """Read the roster, together with all who ask meanwhile. Return whether that was possible."""
        if self._link.down:
            return False
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._link.script(SERVED, (), keys.MOST_DATABASES))
            # Nobody may be left to take the error of a link that ends.
            self._looking.add_done_callback(lambda looking: looking.cancelled() or looking.exception())
        looking = self._looking
        await asyncio.wait([looking], timeout=WAIT_S)
        if not looking.done() or looking.cancelled():
            return False
        error = looking.exception()
        if isinstance(error, redis_errors.ResponseError):
            log.warning("operations of other replicas cannot be read", error=str(error))
        if error is not None:
            return False
        complete, level, replica, database, version, *names = looking.result()
        self._is_complete, self._served = bool(complete), frozenset(names)
        self._oldest = (int(level), replica, database, version)
        self._looked_at = time.monotonic()
        return True


def unserved(op: str, known: Collection[str]) -> Unserved:
    """Return the error for an operation that no live replica serves."""
    return Unserved(f"no live replica serves the operation {op!r:.100}{nearest(op, known)}", op=op)


def nearest(op: str, known: Collection[str]) -> str:
    """Return "; did you mean 'x'?" where a known operation has a similar name, else ""."""
    alike = difflib.get_close_matches(op[:100], sorted(known), n=1)
    return f"; did you mean {alike[0]!r}?" if alike else ""


def _older(level: int, replica: str, database: str, version: str) -> OlderRelease:
    release = f"version {version}" if version else "an older version"
    return OlderRelease(
        f"{OPTIONS[level]} cannot be used while {replica} (database {database}, {release}) is live, because that "
        "release does not know them; retry when it has left",
        retry_after=5,
        replica=replica,
    )
