"""Hashes passwords with Argon2 in a few threads, behind a bounded queue in which known callers go first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mesh import Busy

T = TypeVar("T")

#: Argon2's memory in KiB, passes and lanes (threads of one hash): the least that OWASP advises. Two hashes at once take
#: 38 MiB.
MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
#: The most passwords that wait for each thread. With more, a login would take seconds; 503 is the better answer.
MOST_WAITING_PER_THREAD = 16


class Passwords:
    """Hashes and compares passwords in threads. Argon2 releases the interpreter lock, so the event loop goes on.

    A caller is known if somebody logged in to the account before from the same device or network. Other callers fill at
    most half of the queue, and known callers go before them. So a flood of invented logins delays a known caller by one
    hash.
    """

    def __init__(self, thread_count: int) -> None:
        self._hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._threads = ThreadPoolExecutor(thread_count, thread_name_prefix="argon2")
        self._permits = _ThreadPermits(thread_count)
        # For each thread: the password that it hashes, and those that wait for it. For strangers only half of the queue
        # counts.
        self._most_in_progress = thread_count * (1 + MOST_WAITING_PER_THREAD)
        self._most_if_stranger = thread_count * (1 + MOST_WAITING_PER_THREAD // 2)
        #: how many passwords are being hashed or compared, or wait for that
        self._count_in_progress = 0
        #: compared if no account has the address, so that the answer takes as long as for an existing account
        self._decoy = self._hasher.hash("no account has this password")

    async def hash(self, password: str, *, is_known: bool = False) -> str:
        """Return the hash of a new password. Raises Busy when the queue is full."""
        return await self._run_in_thread(lambda: self._hasher.hash(password), is_known=is_known)

    async def matches(self, password_hash: str | None, password: str, *, is_known: bool = False) -> bool:
        """Return whether a password has this hash. If the hash is None, return False after the same time.

        Raises Busy.
        """
        is_match = await self._run_in_thread(
            lambda: self._verify(password_hash or self._decoy, password), is_known=is_known
        )
        return is_match and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether a hash was made with other costs than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    def close(self) -> None:
        """Stop the threads; queued passwords are not hashed any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            # The second error: the account holds no valid hash, so no password is right.
            return False

    async def _run_in_thread(self, hash_or_verify: Callable[[], T], *, is_known: bool) -> T:
        """Hash or compare in a thread, once a permit is free. Raises Busy if too many wait."""
        if self._count_in_progress >= (self._most_in_progress if is_known else self._most_if_stranger):
            raise Busy("too many passwords are being checked; retry after 1 s", retry_after=1)
        self._count_in_progress += 1
        try:
            async with self._permits.holding_one(is_known=is_known):
                return await asyncio.get_running_loop().run_in_executor(self._threads, hash_or_verify)
        finally:
            self._count_in_progress -= 1


class _ThreadPermits:
    """One permit for each thread. While callers wait, a free permit goes to a known caller first.

    Callers wait here and not in the queue of the executor, which would serve them in the order of their coming.
    """

    def __init__(self, thread_count: int) -> None:
        self._free_count = thread_count
        self._known_waiters: deque[asyncio.Future[None]] = deque()
        self._stranger_waiters: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def holding_one(self, *, is_known: bool) -> AsyncIterator[None]:
        """Hold a permit while the block lasts."""
        if self._free_count:
            self._free_count -= 1
        else:
            await self._wait(self._known_waiters if is_known else self._stranger_waiters)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        """Wait in a queue until `_release` passes a permit on to this caller."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                # This caller got a permit just before the cancellation, and will not use it.
                self._release()
            raise

    def _release(self) -> None:
        """Pass a permit on to the first known caller that waits, else to the first stranger. Else it is free."""
        for queue in (self._known_waiters, self._stranger_waiters):
            while queue:
                waiter = queue.popleft()
                # Done: this waiter was cancelled.
                if not waiter.done():
                    waiter.set_result(None)
                    return
        self._free_count += 1
