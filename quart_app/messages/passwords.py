"""Argon2 on a few threads, behind a bounded queue that leaves room for known callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mesh.errors import Busy

T = TypeVar("T")

#: Memory in KiB, passes and lanes: the least that OWASP advises, so two hashes at once take 38 MiB.
MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
#: Passwords that wait for each thread. With more, a login would take seconds; 503 is the better answer.
WAITING_PER_THREAD = 16


class Passwords:
    """Hashes and compares passwords off the event loop; Argon2 releases the interpreter lock.

    Callers that are not known to an account fill at most half of the queue, so that a flood of invented logins leaves
    room for those who logged in before.
    """

    def __init__(self, concurrency: int) -> None:
        self._hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="argon2")
        self._bound = concurrency * (1 + WAITING_PER_THREAD)
        self._bound_of_strangers = concurrency * (1 + WAITING_PER_THREAD // 2)
        self._queued = 0
        #: compared for an unknown address, so that the answer takes as long as for a known one
        self._decoy = self._hasher.hash("no account has this password")

    async def hash(self, password: str) -> str:
        """Return the hash of a new password. Raises Busy when the queue is full."""
        return await self._run(lambda: self._hasher.hash(password), self._bound_of_strangers)

    async def matches(self, hashed: str | None, password: str, *, is_known: bool = False) -> bool:
        """Return whether a password has this hash; False after the same time for None. Raises Busy."""
        bound = self._bound if is_known else self._bound_of_strangers
        fits = await self._run(lambda: self._verify(hashed or self._decoy, password), bound)
        return fits and hashed is not None

    def is_outdated(self, hashed: str) -> bool:
        """Return whether a hash was made with other costs than today's."""
        return self._hasher.check_needs_rehash(hashed)

    def close(self) -> None:
        """Stop the threads; queued passwords are not hashed any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T], bound: int) -> T:
        if self._queued >= bound:
            raise Busy("too many passwords are being checked; retry after 1 s", retry_after=1)
        self._queued += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._queued -= 1
