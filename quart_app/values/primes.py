"""The filter of the primes in this replica's database: a GET asks only databases that may have its prime.

Each put sets the bits of its primes in the commit that writes the records. Nothing clears a bit. So the replica makes
a new filter when one bit in eight is set (one in four, if the filter is new), when the filter is far too large for what
is left, or when it is gone:

    1  puts begin to set bits in the new filter, too
    2  the replica waits for the puts that were on their way to Redis before step 1
    3  it puts the primes of the index into the new filter, part by part
    4  it names the new filter in its roster row; then puts forget the former one, which is deleted

So the filter that the row names has every prime of the database at any moment. Every GET asks a database whose row
names no filter, for instance because its replica has just started or is of an earlier release. Every GET also asks a
database whose filter has expired with its last record.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import gmpy2
import structlog

from mesh import Busy, MeshError
from mesh.raw import Filter, Replica, Script, Store
from quart_app.values import store as records
from quart_app.values.pace import Pace

log = structlog.get_logger(__name__)

#: The name of the filter in roster rows. Filters of the name without a number have other bits for a prime.
NAME = "values.primes.2"
KEY = "values:primes:"
#: Between two looks at the filter.
LOOK_S = 1.0
#: Primes that are read from the index at once.
PART = 2000
#: Primes of fewer digits are common. Most others have only one value.
RARE_DIGITS = 6
#: How many primes are common.
COMMON = 9592
#: A filter is made anew when more than one in so many of its bits is set. Each prime sets two bits, and a new filter
#: has 32 for each. So this happens when it has about twice as many primes as it was made for.
FILL = 8
#: A new filter may become twice as full in this time, so that a database that grows quickly makes fewer of them. A new
#: filter costs as much for each prime that is there as a put does for each of its own.
YOUNG_S = 10.0
#: A filter that is more than so many times as large as it has to be is made anew.
EXCESS = 8

PRIMES = Script.beside(__file__, "primes.lua")
#: KEYS: alone, index, records. Returns how many entries alone has, and index, and when the last record expires (ms).
STATE = Script("return {redis.call('HLEN', KEYS[1]), redis.call('ZCARD', KEYS[2]), redis.call('PEXPIRETIME', KEYS[3])}")


class Primes:
    """The filters of this replica's database: one, or two while the next one is made."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._kept: tuple[Filter, ...] = ()
        #: until when the current filter counts as new (time.monotonic())
        self._young_until_s = 0.0
        #: the membership that they belong to
        self._replica = ""

    def filters(self) -> tuple[Filter, ...]:
        """Return the filters that a put must write to."""
        return self._kept

    async def run(self, replica: Replica) -> None:
        """Keep a filter until cancelled. Afterwards puts go on to set its bits, as long as the membership lasts."""
        while True:
            try:
                await self.look(replica)
            except MeshError as error:
                log.warning("filter of primes not kept", error=str(error))
            await asyncio.sleep(LOOK_S)

    async def look(self, replica: Replica) -> None:
        """Make a filter if there is none, or if the current one is too full or far too large."""
        if self._replica != replica.id:
            self._replica, self._kept = replica.id, ()
        names = [records.ALONE, records.INDEX, records.RECORDS]
        named, state = await asyncio.gather(replica.filters.named(NAME), replica.store().script(STATE, names))
        alone, members, end_ms = map(int, state)
        current = next((kept for kept in self._kept if kept == named), None)
        if current is None and named is not None:
            await replica.filters.name(NAME, None)
        elif current is not None:
            await self._keep(replica, current)
        count = alone + min(members, COMMON)
        if current is None or await self._is_over(replica, current, count):
            bits = Filter.size_for(count)
            with contextlib.suppress(Busy):
                # Without room for a new filter the current one stays. If there is none, every GET asks the database.
                replica.memory.store(bits // 8)
                await self._make(replica, current, bits, end_ms)

    async def _is_over(self, replica: Replica, filter: Filter, count: int) -> bool:
        """Return whether a new filter must replace this one; `count` is the number of primes in the index."""
        if count and not await replica.filters.counts(filter):
            return True
        bits_set = await replica.filters.bits_set(filter)
        fill = FILL / 2 if time.monotonic() < self._young_until_s else FILL
        is_too_large = filter.bits > EXCESS * Filter.size_for(count)
        return bits_set * fill > filter.bits or is_too_large or (not count and bits_set > 0)

    async def _make(self, replica: Replica, current: Filter | None, bits: int, end_ms: int) -> None:
        """Make a filter, and name it in the roster row."""
        slots = [f"{KEY}{replica.database}:{slot}" for slot in (0, 1)]
        key = next(key for key in slots if current is None or current.key != key)
        # A former holder, or the filter before the current one, may have left something at this key.
        await _unlink(replica, [key])
        former, fresh = () if current is None else (current,), Filter(key, bits)
        self._kept = (*former, fresh)
        try:
            # Commits are applied in order, so all that were made without the new filter are applied before this one.
            await replica.commit(replica.transaction())
            common = await self._fill(replica, fresh, end_ms)
        except BaseException:
            self._kept = former
            raise
        fresh = replace(fresh, below=_first_without(common))
        self._kept, self._young_until_s = (*former, fresh), time.monotonic() + YOUNG_S
        # If the answer is lost, the next look finds out which of the two the row names.
        if await replica.filters.name(NAME, fresh):
            await self._keep(replica, fresh)

    async def _keep(self, replica: Replica, named: Filter) -> None:
        """Let puts forget the filters beside the one that the row names, and delete them."""
        former = [filter.key for filter in self._kept if filter != named]
        self._kept = (named,)
        if former:
            await _unlink(replica, former)

    async def _fill(self, replica: Replica, fresh: Filter, end_ms: int) -> set[str]:
        """Put the primes of the index into a filter, and keep it until `end_ms`: 0 or less if there are no records.

        Return the common ones.
        """
        common: set[str] = set()
        async for primes in _parts(replica.store()):
            await self._pace()
            if end_ms > 0:
                transaction = replica.transaction()
                transaction.shared.mark(fresh, [*primes])
                transaction.shared.keep_until(fresh.key, end_ms)
                await replica.commit(transaction)
                common.update(prime for prime in primes if len(prime) < RARE_DIGITS)
        return common


async def _parts(store: Store) -> AsyncIterator[set[str]]:
    """Yield the primes of the index, some at a time; some come more than once."""
    cursor = ""
    while True:
        cursor, names = await store.script(PRIMES, [records.INDEX, records.ALONE], cursor, PART)
        if names:
            yield {records.digits(name) for name in names}
        if not cursor:
            return


def _first_without(primes: set[str]) -> int:
    """Return the first prime that is not among these."""
    prime = 2
    while str(prime) in primes:
        prime = int(gmpy2.next_prime(prime))
    return prime


async def _unlink(replica: Replica, keys: Iterable[str]) -> None:
    transaction = replica.transaction()
    for key in keys:
        transaction.shared.write("UNLINK", key)
    await replica.commit(transaction)
