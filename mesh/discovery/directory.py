"""What the live replicas serve, and what their releases understand. A process looks this up before it sends a request.

The process of the caller refuses a request whose operation no live replica serves. It also refuses an option that an
older release would misread, until the last live replica of that release has left.

A replica's roster row has two fields for this. `serves` is the digest of its table of operations, and `reads` is the
highest level of options that its release understands. A process reads the roster only for an option, or for an
operation that the process does not serve itself. What allows a request is used for a second, and then read again.
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

#: Reads which operations the live replicas serve.
READ_SERVED = Script.beside(__file__, "served.lua")
#: Asks whether a replica of one class serves one operation.
ASK_SERVES = Script.beside(__file__, "serves.lua")

#: Levels of options. An option has a level, and may be used while the releases of all live replicas understand this
#: level. The rows of releases before the first level name no level.
LATER = 1  # delays and schedules
ONCE = 2  # idempotency keys
LIMITS = 3  # limits of requests at once, or in a time
#: The highest level that this release understands.
HIGHEST_LEVEL = LIMITS
#: Level -> its options, as callers write them.
OPTION_NAMES = {LATER: "after= and at=", ONCE: "key=", LIMITS: "limit="}

#: For this long the result of a lookup is used if it allows a request. Before each refusal the roster is read again. A
#: longer time saves lookups, but it is noticed later that no replica serves an operation any more.
LOOKUP_FRESH_S = 1.0
#: Longest wait for the lookup. If there is no answer by then, no request is refused here. A longer wait delays calls
#: while Redis is slow; after a shorter one, more of them go on unchecked.
LOOKUP_WAIT_S = 1.0


class Directory:
    """What one process knows of the live replicas. `own_operations` are those that this process serves itself."""

    def __init__(self, link: Link, own_operations: Collection[str]) -> None:
        self._link = link
        self._own_operations = frozenset(own_operations)
        self._served_ops: frozenset[str] = frozenset()
        #: whether `_served_ops` has all operations that live replicas serve
        self._served_is_complete = False
        #: the live replica with the lowest level: first this level, then its name, its database and its version
        self._lowest: tuple[int, str, str, str] = (0, "", "", "")
        #: when the roster was read last, on this process's monotonic clock
        self._read_at = float("-inf")
        #: the last lookup of the roster, which all callers share that come before its result
        self._lookup: asyncio.Future[Any] | None = None

    def is_known_to_allow(self, ops: Iterable[str], level: int = 0) -> bool:
        """Return whether a request may be sent without a lookup, because what this process knows allows it.

        The process must know that the operations are served, and that all live replicas understand the level. The
        level 0 stands for a request without options, which every release understands.
        """
        if level and (level > self._lowest[0] or time.monotonic() - self._read_at > LOOKUP_FRESH_S):
            return False
        return all(map(self.knows, ops))

    def knows(self, op: str) -> bool:
        """Return whether this process knows, without a lookup, that the operation is served."""
        return op in self._own_operations or (
            op in self._served_ops and time.monotonic() - self._read_at <= LOOKUP_FRESH_S
        )

    async def check(self, ops: Iterable[str], level: int = 0) -> None:
        """Raise Unserved if one of the operations has no live replica that serves it.

        Raises OlderRelease if the release of a live replica does not understand the level.
        """
        asked_ops = list(ops)  # an iterator could be read only once
        # If the roster cannot be read, the request goes on unchecked.
        if self.is_known_to_allow(asked_ops, level) or not await self._read_roster():
            return
        if level > self._lowest[0]:
            raise _older_release(level, *self._lowest[1:])
        known_ops = self._own_operations | self._served_ops
        for op in asked_ops:
            if op not in known_ops and self._served_is_complete:
                raise unserved_error(op, known_ops)

    async def all_understand(self, level: int) -> bool:
        """Return whether every live replica understands this level; False if the roster cannot be read."""
        return self.is_known_to_allow((), level) or (await self._read_roster() and level <= self._lowest[0])

    async def is_served(self, op: str, cls: str, *, counts_expected: bool) -> bool:
        """Look up whether a live replica of a class serves an operation.

        With `counts_expected` the answer is also True if a replica of the class is expected back, because that one may
        serve the operation. Raises LeaseLost and redis-py's errors.
        """
        return bool(
            await self._link.script(ASK_SERVES, [keys.SERVED], keys.MOST_DATABASES, cls, op, int(counts_expected))
        )

    async def _read_roster(self) -> bool:
        """Read the roster; calls during a lookup share its result. Return whether the roster could be read in time."""
        if self._link.down:  # a lookup would wait until Redis can be reached again
            return False
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.ensure_future(self._link.script(READ_SERVED, (), keys.MOST_DATABASES))
            # When the link ends, perhaps no caller waits for the lookup any more. Then its error must be taken here.
            self._lookup.add_done_callback(lambda lookup: lookup.cancelled() or lookup.exception())
        lookup = self._lookup
        await asyncio.wait([lookup], timeout=LOOKUP_WAIT_S)
        if not lookup.done() or lookup.cancelled():
            return False
        error = lookup.exception()
        # Redis refused the script. All other errors mean that Redis could not be reached, or that the link has ended.
        if isinstance(error, redis_errors.ResponseError):
            log.warning("operations of other replicas cannot be read", error=str(error))
        if error is not None:
            return False
        is_complete, level, replica, database, version, *served_ops = lookup.result()
        self._served_is_complete, self._served_ops = bool(is_complete), frozenset(served_ops)
        self._lowest = (int(level), replica, database, version)
        self._read_at = time.monotonic()
        return True


def unserved_error(op: str, known: Collection[str]) -> Unserved:
    """Return the error for an operation that no live replica serves. `known` are the operations that are served."""
    return Unserved(f"no live replica serves the operation {op!r:.100}{suggestion_for(op, known)}", op=op)


def suggestion_for(op: str, known: Collection[str]) -> str:
    """Return "; did you mean 'x'?" where a known operation has a similar name, else "".

    Only the first 100 characters of `op` are compared, because the caller chooses how long the text is.
    """
    similar_names = difflib.get_close_matches(op[:100], sorted(known), n=1)
    return f"; did you mean {similar_names[0]!r}?" if similar_names else ""


def _older_release(level: int, replica: str, database: str, version: str) -> OlderRelease:
    """Return the error for an option that a live replica does not know. `level` is the level of the option."""
    release = f"version {version}" if version else "an older version"
    return OlderRelease(
        f"{OPTION_NAMES[level]} cannot be used while {replica} (database {database}, {release}) is live, because that "
        "release does not know them; retry when it has left",
        retry_after=5,  # a shorter time would only make callers ask more often
        replica=replica,
    )
