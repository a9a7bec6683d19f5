"""How full the server's memory is, and whether something new may be stored.

New data are refused before the memory is full. Its last part is a reserve for requests, replies and logins, which need
memory only for a short time. If the memory is full all the same, the server refuses all commands that need memory,
except for scripts that may exceed `maxmemory`. These store nothing that stays (`requests.scripts.when_full`).

    0 ----------- maxmemory - reserve ----------- maxmemory ------------------------------
      everything                 all but new data           reads, logins, settlement, renewal

Each replica looks twice a second: it asks the server how much memory is used. The answer may lack a commit that is
under way. So the replica adds the bytes that it has stored since the look before the last one. If
several replicas store at the same time, they may use some of the reserve. They do not take the memory beyond
`maxmemory`, because the script of a large batch compares the memory itself (`room.lua`).

The answer also tells whether the server may delete keys to make room, or has done so. Then no replica is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import structlog
from redis import exceptions as redis_errors

from mesh.errors import Busy, MeshError
from mesh.wire.failures import NO_EVICTION, eviction_refusal
from mesh.wire.link import Link

log = structlog.get_logger(__name__)

#: Pause, in seconds, between two looks at the server's memory. Between them a replica does not know what others store.
#: With a longer pause, replicas may together store more before they notice; a shorter one costs more commands.
MEMORY_LOOK_S = 0.5
#: A server may not name its policy. If such a server has deleted a key for room, we assume for this time, in seconds,
#: that its policy is to delete keys. A longer time keeps replicas from being ready for longer after the last deletion.
#: With a shorter one, they may be ready between two deletions.
EVICTING_S = 60.0
#: How many seconds a refused caller should wait. Expired data, which may make room, are removed within seconds. With a
#: shorter wait, callers would be refused more often; with a longer one, they come back later than they could.
RETRY_AFTER_S = 5

_USED = re.compile(r"^used_memory:(\d+)", re.MULTILINE)
_POLICY = re.compile(r"^maxmemory_policy:([a-z-]+)", re.MULTILINE)
_EVICTED = re.compile(r"^evicted_keys:(\d+)", re.MULTILINE)
_LIMIT = re.compile(r"^maxmemory:(\d+)", re.MULTILINE)


class Memory:
    """What this replica knows of the server's memory. `run` keeps it current until cancelled.

    `reserve_share` is the part of `maxmemory`, from 0 to 1, that new data may not use.
    """

    def __init__(self, link: Link, reserve_share: float) -> None:
        self._link = link
        self._reserve_share = reserve_share
        #: bytes that this replica stored: `_stored` since the last look, `_stored_before` between the last two looks
        self._stored = self._stored_before = 0
        #: bytes that the server used at the last look
        self.used = 0
        #: `maxmemory`; 0 if the server has no limit or does not say
        self.limit = 0
        #: why the server may delete acknowledged data to make room; "" if it does not
        self.eviction_reason = ""
        #: how many keys the server had deleted to make room at the last look; None before the first look
        self._evicted_keys: int | None = None
        #: when a look last found more deleted keys (`time.monotonic()`)
        self._evicted_at = -EVICTING_S

    async def run(self) -> None:
        """Look at the server's memory twice a second. End if the server does not say how much it uses."""
        with contextlib.suppress(_UsageUnknown):
            while True:
                await self._look()
                await asyncio.sleep(MEMORY_LOOK_S)

    async def _look(self) -> None:
        """Ask the server how much memory it uses. Raises _UsageUnknown if the server does not say it."""
        stored_until_now = self._stored
        try:
            info = str(await self._link.shared("INFO", "memory", "stats"))
        except redis_errors.ResponseError as error:
            log.warning("memory of the server unknown", error=str(error))
            raise _UsageUnknown from error
        except MeshError:
            # Look again later. An error that ends the membership is also raised where the link runs.
            return
        used_match, limit_match = _USED.search(info), _LIMIT.search(info)
        was_full = self.is_full
        self.used = int(used_match[1]) if used_match else 0
        self.limit = int(limit_match[1]) if limit_match else 0
        # What was stored after the question stays in `_stored`. What was stored before it moves to `_stored_before`,
        # and so counts until the next look.
        self._stored_before = stored_until_now
        self._stored -= stored_until_now
        self._look_for_eviction(info)
        if self.is_full != was_full:
            log.warning("Redis is full" if self.is_full else "Redis has room again", used=self.used, limit=self.limit)

    def _look_for_eviction(self, info: str) -> None:
        """Note whether the server may delete keys to make room (its policy), or has done so (its counter)."""
        policy, evicted_match = _POLICY.search(info), _EVICTED.search(info)
        evicted_keys = int(evicted_match[1]) if evicted_match else 0
        if self._evicted_keys is not None and evicted_keys > self._evicted_keys:
            self._evicted_at = time.monotonic()
            log.error("the server has deleted keys to make room", keys=evicted_keys - self._evicted_keys)
        self._evicted_keys = evicted_keys
        reason = ""
        if policy and policy[1] != NO_EVICTION:
            reason = eviction_refusal(policy[1])
        elif not policy and time.monotonic() - self._evicted_at < EVICTING_S:
            reason = (
                "the server deletes keys to make room; set maxmemory-policy noeviction, and restore what is missing"
            )
        if reason and not self.eviction_reason:
            log.error("the server may delete acknowledged data", reason=reason)
        self.eviction_reason = reason

    @property
    def room(self) -> int | None:
        """Bytes that may still be stored; None if there is no limit."""
        if not self.limit:
            return None
        return int(self.limit * (1 - self._reserve_share)) - self.used - self._stored - self._stored_before

    @property
    def is_full(self) -> bool:
        """Whether new data are refused."""
        return self.room is not None and self.room <= 0

    def store(self, amount: int = 0) -> None:
        """Count bytes that the caller is about to store: this stores nothing. Raises Busy if there is no room for them.

        Without a number, only refuse if the memory is full.
        """
        room = self.room
        if room is None or amount < room:
            self._stored += amount
            return
        raise Busy(
            f"Redis is full ({self.used} of {self.limit} bytes are used): nothing new is stored, reads go on; "
            f"retry after {RETRY_AFTER_S} s",
            retry_after=RETRY_AFTER_S,
        )


class _UsageUnknown(Exception):
    """The server does not say how much memory it uses."""
