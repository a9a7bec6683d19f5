"""What the live replicas serve, and what their releases understand. A process looks this up before it sends a request.

The process of the caller refuses a request whose operation no live replica serves. It also refuses an option that an
older release would misread, until the last live replica of that release has left.

A replica's roster row has two fields for this. `serves` is the digest of its table of operations, and `reads` is the
highest level of options that its release understands. A process reads the roster at most once a second, and only for an
option, or for an operation that the process does not serve itself.
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

#: Reads what all live replicas serve.
SERVED = Script.beside(__file__, "served.lua")
#: Looks up whether a replica of one class serves one operation.
SERVES = Script.beside(__file__, "serves.lua")

#: Levels of options. An option has a level, and may be used while the releases of all live replicas understand this
#: level. The rows of releases before the first level name no level.
LATER = 1
ONCE = 2
LIMITS = 3
#: The highest level that this release understands.
READS = LIMITS
#: Level -> its options, as callers write them.
OPTION_NAMES = {LATER: "after= and at=", ONCE: "key=", LIMITS: "limit="}

#: For this long the result of a lookup is used. After that the roster is read again.
LOOKUP_FRESH_S = 1.0
#: Longest wait for the lookup. If there is no answer by then, no request is refused here.
WAIT_S = 1.0


class Directory:
    """What one process knows of the live replicas. `own` are the operations that this process serves itself."""

    def __init__(self, link: Link, own: Collection[str]) -> None:
        self._link = link
        self._own = frozenset(own)
        self._served: frozenset[str] = frozenset()
        #: whether `_served` has all operations that live replicas serve
        self._is_complete = False
        #: level, replica, database and version of the live replica with the lowest level
        self._oldest: tuple[int, str, str, str] = (0, "", "", "")
        self._read_at = float("-inf")
        self._lookup: asyncio.Future[Any] | None = None

    def allows(self, ops: Iterable[str], level: int = 0) -> bool:
        """Return whether a request may be sent without a lookup.

        This process must know that the operations are served, and that all live replicas understand the level.

        The level 0 stands for a request without options, which every release understands.
        """
        if level and (level > self._oldest[0] or time.monotonic() - self._read_at > LOOKUP_FRESH_S):
            return False
        return all(map(self.knows, ops))

    def knows(self, op: str) -> bool:
        """Return whether no lookup is needed: it is known that the operation is served."""
        return op in self._own or (op in self._served and time.monotonic() - self._read_at <= LOOKUP_FRESH_S)

    async def check(self, ops: Iterable[str], level: int = 0) -> None:
        """Raise Unserved if one of the operations has no live replica that serves it.

        Raises OlderRelease if the release of a live replica does not understand the level.
        """
        names = list(ops)
        if self.allows(names, level) or not await self._read_roster():
            return
        if level > self._oldest[0]:
            raise _older_release(level, *self._oldest[1:])
        known = self._own | self._served
        for op in names:
            if op not in known and self._is_complete:
                raise unserved(op, known)

    async def understands(self, level: int) -> bool:
        """Return whether every live replica understands this level; False if the roster cannot be read."""
        return self.allows((), level) or (await self._read_roster() and level <= self._oldest[0])

    async def is_served(self, op: str, cls: str, *, patient: bool) -> bool:
        """Look up whether a live replica of a class serves an operation.

        With `patient` the answer is also True if a replica of the class is expected back, because that one may serve
        the operation. Raises LeaseLost and redis-py's errors.
        """
        return bool(await self._link.script(SERVES, [keys.SERVED], keys.MOST_DATABASES, cls, op, int(patient)))

    async def _read_roster(self) -> bool:
        """Read the roster; calls during a lookup share its result. Return whether the roster could be read in time."""
        if self._link.down:
            return False
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.ensure_future(self._link.script(SERVED, (), keys.MOST_DATABASES))
            # When the link ends, perhaps no caller waits for the lookup any more. Then its error must be taken here.
            self._lookup.add_done_callback(lambda lookup: lookup.cancelled() or lookup.exception())
        lookup = self._lookup
        await asyncio.wait([lookup], timeout=WAIT_S)
        if not lookup.done() or lookup.cancelled():
            return False
        error = lookup.exception()
        # Redis refused the script. All other errors mean that Redis could not be reached, or that the link has ended.
        if isinstance(error, redis_errors.ResponseError):
            log.warning("operations of other replicas cannot be read", error=str(error))
        if error is not None:
            return False
        complete, level, replica, database, version, *names = lookup.result()
        self._is_complete, self._served = bool(complete), frozenset(names)
        self._oldest = (int(level), replica, database, version)
        self._read_at = time.monotonic()
        return True


def unserved(op: str, known: Collection[str]) -> Unserved:
    """Return the error for an operation that no live replica serves."""
    return Unserved(f"no live replica serves the operation {op!r:.100}{nearest(op, known)}", op=op)


def nearest(op: str, known: Collection[str]) -> str:
    """Return "; did you mean 'x'?" where a known operation has a similar name, else ""."""
    alike = difflib.get_close_matches(op[:100], sorted(known), n=1)
    return f"; did you mean {alike[0]!r}?" if alike else ""


def _older_release(level: int, replica: str, database: str, version: str) -> OlderRelease:
    release = f"version {version}" if version else "an older version"
    return OlderRelease(
        f"{OPTION_NAMES[level]} cannot be used while {replica} (database {database}, {release}) is live, because that "
        "release does not know them; retry when it has left",
        retry_after=5,
        replica=replica,
    )
