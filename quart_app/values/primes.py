"""The filter of the primes in this replica's database: a GET asks only databases that may have its prime.

Each put sets the bits of its primes in the commit that writes the records. Nothing clears a bit, so a filter fills up.
The replica makes a new one in four cases:

    too full     more than one bit in eight is set; one in four, while the filter is young
    too large    the filter is more than eight times as large as a new one would be
    outdated     it has bits, but the database has no primes any more
    gone         its key is gone

Four steps make a new filter:

    1  from now on, puts also set their bits in the new filter
    2  the replica waits until Redis has applied the puts that were sent before step 1
    3  the replica adds the primes of the index to the new filter, part by part
    4  the replica names the new filter in its roster row, stops setting bits in the former one, and deletes it

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
from quart_app.values import store as records  # not `store`: a parameter `store` reads keys (`mesh.raw.Store`)
from quart_app.values.pace import Pace

log = structlog.get_logger(__name__)

#: The name of the filter in roster rows. Earlier releases have a filter `values.primes`, whose bits are computed in
#: another way, so each release must read only its own.
FILTER_NAME = "values.primes.2"
#: A prefix, which "{database}:{0 or 1}" follows. The two keys take turns: the new filter gets the key that the current
#: one has not.
KEY_PREFIX = "values:primes:"
#: Pause between two checks of the filter. Each check costs some reads. Until the next check, a filter may be too full,
#: and then more GETs ask a database that has nothing.
CHECK_S = 1.0
#: About how many primes are read from the index at a time. More would block the server and the event loop for longer;
#: fewer would need more reads.
PRIMES_AT_ONCE = 2000
#: Most primes with at least this number of digits divide only one value. Primes with fewer digits are called common
#: here.
RARE_DIGITS = 6
#: The number of primes below 100,000, which are the common ones.
COMMON_COUNT = 9592
#: A filter is too full when more than one bit in eight is set. Each prime sets two bits, and a new filter has 32 bits
#: for each prime. So a filter is too full when it has about twice as many primes as it was made for.
TOO_FULL_ONE_IN = 8
#: A filter is young for this time. A young filter may become twice as full as TOO_FULL_ONE_IN says, because a database
#: that grows quickly would otherwise make one filter after the other. Each new filter costs the work of putting all its
#: primes again.
YOUNG_S = 10.0
#: A filter is too large when it is more than eight times as large as a new one would be. With less, a database whose
#: size varies would make filters often; with more, Redis holds more useless bits.
TOO_LARGE_TIMES = 8

#: Reads the primes of the index, some at a time.
READ_PRIMES = Script.beside(__file__, "primes.lua")
#: KEYS: alone, index, records. Returns the number of entries of `alone`, the number of entries of `index`, and the
#: moment (ms) at which the last record expires; a negative number if there are no records.
READ_STATE = Script(
    "return {redis.call('HLEN', KEYS[1]), redis.call('ZCARD', KEYS[2]), redis.call('PEXPIRETIME', KEYS[3])}"
)


class Primes:
    """Keeps the filters of this replica's database: the current one, and a new one while the replica makes it."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        #: the filters in which puts set bits: the current one, if any, and after it the new one while it is made
        self._kept: tuple[Filter, ...] = ()
        #: until this `time.monotonic()` the current filter is young
        self._young_until_s = 0.0
        #: the id of this replica when it made the filters; a new membership has a new id
        self._replica_id = ""

    def filters(self) -> tuple[Filter, ...]:
        """Return the filters in which a put must set its bits."""
        return self._kept

    async def run(self, replica: Replica) -> None:
        """Check the filter again and again, until cancelled. The puts of a leaving replica still set their bits."""
        while True:
            try:
                await self.refresh(replica)
            except MeshError as error:
                log.warning("filter of primes not kept", error=str(error))
            await asyncio.sleep(CHECK_S)

    async def refresh(self, replica: Replica) -> None:
        """Make a filter if there is none, or if the current one is too full or far too large."""
        if self._replica_id != replica.id:
            self._replica_id, self._kept = replica.id, ()
        key_names = [records.ALONE, records.INDEX, records.RECORDS]
        named_filter, state = await asyncio.gather(
            replica.filters.read_from_row(FILTER_NAME), replica.store().script(READ_STATE, key_names)
        )
        alone_count, index_count, last_expiry_ms = map(int, state)
        current = next((kept for kept in self._kept if kept == named_filter), None)
        if current is None and named_filter is not None:
            # Puts set no bits in the filter that the row names, so no GET may rely on it.
            await replica.filters.put_in_row(FILTER_NAME, None)
        elif current is not None:
            await self._keep_only(replica, current)
        # An estimate: nearly each rare prime is in ALONE, and there are COMMON_COUNT other primes.
        prime_count = alone_count + min(index_count, COMMON_COUNT)
        if current is None or await self._must_be_replaced(replica, current, prime_count):
            size_bits = Filter.size_for(prime_count)
            with contextlib.suppress(Busy):
                # If memory is full, the current filter stays. If there is none, every GET asks this database.
                replica.memory.store(size_bits // 8)
                await self._make(replica, current, size_bits, last_expiry_ms)

    async def _must_be_replaced(self, replica: Replica, filter: Filter, prime_count: int) -> bool:
        """Return whether a new filter must replace this one; the database has about `prime_count` primes."""
        # A filter is not valid if its key is gone.
        if prime_count and not await replica.filters.is_valid(filter):
            return True
        set_bit_count = await replica.filters.count_set_bits(filter)
        # A young filter may have twice as many bits set: one in four.
        one_in = TOO_FULL_ONE_IN / 2 if time.monotonic() < self._young_until_s else TOO_FULL_ONE_IN
        is_too_large = filter.bits > TOO_LARGE_TIMES * Filter.size_for(prime_count)
        return set_bit_count * one_in > filter.bits or is_too_large or (not prime_count and set_bit_count > 0)

    async def _make(self, replica: Replica, current: Filter | None, size_bits: int, last_expiry_ms: int) -> None:
        """Make a new filter, and name it in the roster row: the four steps of this module's docstring."""
        keys = [f"{KEY_PREFIX}{replica.database}:{number}" for number in (0, 1)]
        key = next(key for key in keys if current is None or current.key != key)
        # An earlier filter may still be at this key: that of a former holder, or the one before the current one.
        await _unlink(replica, [key])
        kept_before, new_filter = () if current is None else (current,), Filter(key, size_bits)
        # Step 1.
        self._kept = (*kept_before, new_filter)
        try:
            # Step 2: Redis applies commits in order. So when this empty commit is applied, all earlier ones are, too.
            await replica.commit(replica.transaction())
            # Step 3.
            common_primes = await self._fill(replica, new_filter, last_expiry_ms)
        except BaseException:
            # This catches a cancellation, too. Otherwise puts would go on to set bits in a filter that nobody uses.
            self._kept = kept_before
            raise
        new_filter = replace(new_filter, below=_first_prime_not_in(common_primes))
        self._kept, self._young_until_s = (*kept_before, new_filter), time.monotonic() + YOUNG_S
        # Step 4. If the answer is lost, puts set bits in both filters, until the next check reads which one is named.
        if await replica.filters.put_in_row(FILTER_NAME, new_filter):
            await self._keep_only(replica, new_filter)

    async def _keep_only(self, replica: Replica, named: Filter) -> None:
        """Stop setting bits in filters other than `named`, the one that the roster row names, and delete their keys."""
        former_keys = [filter.key for filter in self._kept if filter != named]
        self._kept = (named,)
        if former_keys:
            await _unlink(replica, former_keys)

    async def _fill(self, replica: Replica, new_filter: Filter, last_expiry_ms: int) -> set[str]:
        """Add the primes of the index to a filter, which expires with the last record. Return the common primes.

        If `last_expiry_ms` is not positive, there are no records, and nothing is added.
        """
        common_primes: set[str] = set()
        async for primes in _read_primes(replica.store()):
            await self._pace()
            if last_expiry_ms > 0:
                transaction = replica.transaction()
                transaction.shared.mark(new_filter, [*primes])
                transaction.shared.keep_until(new_filter.key, last_expiry_ms)
                await replica.commit(transaction)
                common_primes.update(prime for prime in primes if len(prime) < RARE_DIGITS)
        return common_primes


async def _read_primes(store: Store) -> AsyncIterator[set[str]]:
    """Yield the primes of the index, some at a time. A prime may come more than once.

    An entry that somebody has written by hand, and that is no number, is left out: no GET looks for it.
    """
    cursor = ""
    while True:
        cursor, prefixed_primes = await store.script(
            READ_PRIMES, [records.INDEX, records.ALONE], cursor, PRIMES_AT_ONCE
        )
        if prefixed_primes:
            primes = {records.without_prefix(prefixed_prime) for prefixed_prime in prefixed_primes if prefixed_prime}
            yield {prime for prime in primes if prime.isdecimal()}
        if not cursor:
            return


def _first_prime_not_in(primes: set[str]) -> int:
    """Return the first prime that is not among these."""
    prime = 2
    while str(prime) in primes:
        prime = int(gmpy2.next_prime(prime))
    return prime


async def _unlink(replica: Replica, keys: Iterable[str]) -> None:
    """Delete these shared keys in a commit of their own."""
    transaction = replica.transaction()
    for key in keys:
        transaction.shared.write("UNLINK", key)
    await replica.commit(transaction)
