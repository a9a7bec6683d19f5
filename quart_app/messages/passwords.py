"""Argon2 with bounded concurrency: hashing is slow on purpose, and must never be slow for everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mesh.errors import Busy

T = TypeVar("T")

#: Memory in KiB, passes and lanes: the least that OWASP advises, so that two at once cost 38 MiB.
MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
#: Passwords that may wait for each thread; beyond it, honesty is better than a long queue.
WAITING_PER_THREAD = 16


class Passwords:
    """Hashes and checks passwords on a few threads (argon2 releases the interpreter's lock)."""

    def __init__(self, concurrency: int) -> None:
        self._hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="argon2")
        self._bound = concurrency * (1 + WAITING_PER_THREAD)
        self._inside = 0
        #: what an unknown email is checked against, so that it takes as long as a known one
        self._nobody = self._hasher.hash("nobody has this password")

    async def hash(self, password: str) -> str:
        """Raises Busy when too many wait."""
        return await self._run(lambda: self._hasher.hash(password))

    async def matches(self, hashed: str | None, password: str) -> bool:
        """Whether the password is the one that was hashed; never for None, and not sooner either. Raises Busy."""
        found = await self._run(lambda: self._verify(hashed or self._nobody, password))
        return found and hashed is not None

    def is_outdated(self, hashed: str) -> bool:
        """Whether the hash was made with other costs than we take now."""
        return self._hasher.check_needs_rehash(hashed)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._inside >= self._bound:
            raise Busy("too many people are logging in just now", retry_after=1)
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._inside -= 1
