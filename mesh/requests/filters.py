"""Filters: they say which databases may have something, so that a gather need not ask the others.

A filter is a string of bits in the bus database, one for each database and subject. Each thing that the database has
sets two of its bits, and nothing clears a bit. So a database whose filter lacks one of the two bits does not have the
thing for certain, and one that has both may have it. (This is a Bloom filter.)

The holder of the database makes the filter, and names it in its roster row once it is complete. The row ends with the
holder, and the grant to a successor deletes it. So a filter counts only while its maker holds the database. A database
whose row names none is always asked: its holder has just begun, or is of an earlier release. `submit.lua` reads the
filters in the step that submits the requests.

One more bit, the last one, is set when the filter is named. A key that has ended, or that somebody has deleted, loses
this bit with the others, and does not get it back from what is stored later. Such a filter does not count.

The service sets the bits in the commit that writes the thing itself: with `transaction.shared.mark`, or with a verb of
its own that calls `mark_numbers` of commit_verbs.lua.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from redis.exceptions import ResponseError

from mesh import keys
from mesh.wire.link import Link
from mesh.wire.script import Script

#: Names a filter in the roster row, or none, if the lease is held. KEYS: lease, row, and the filter if one is named.
#: ARGV: holder, field, filter or "", its number of bits. Returns 1, or 0 if the lease or the row is gone.
NAME = Script(
    """#!lua flags=allow-oom
local lease_key, row_key = KEYS[1], KEYS[2]
if redis.call('GET', lease_key) ~= ARGV[1] or redis.call('EXISTS', row_key) == 0 then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', row_key, ARGV[2])
else
  redis.call('HSET', row_key, ARGV[2], ARGV[3])
  -- A filter without a key has nothing, and does not count.
  if redis.call('EXISTS', KEYS[3]) == 1 then redis.pcall('BITFIELD', KEYS[3], 'SET', 'u1', ARGV[4], 1) end
end
return 1
"""
)
#: Bits for each thing when a filter is made.
BITS_EACH = 32
LEAST_BITS = 4096

#: Two primes below 2^31, and a factor below 2^21 for each. So a script computes with exact doubles.
_ONE, _ONE_TIMES = 2147483647, 1640531
_OTHER, _OTHER_TIMES = 2147483629, 1327217
#: Only so many last digits of a number are hashed: more would not fit in a double.
_DIGITS = 15


class Among(NamedTuple):
    """The live databases whose filter of this name has both bits of a pair, and those that have no such filter."""

    name: str
    pairs: tuple[tuple[int, int], ...]

    @property
    def target(self) -> str:
        """The name of these databases in scripts."""
        return " ".join(["*", self.name, *[f"{one} {other}" for one, other in self.pairs]])


def among(name: str, *numbers: str) -> Among:
    """Return the databases that may have one of these numbers, by their filters of this name."""
    return Among(name, tuple(map(_hashes, numbers)))


def _hashes(number: str) -> tuple[int, int]:
    """Return two numbers of 31 bits for a number in decimal digits, the same as `mark_numbers` of commit_verbs.lua."""
    last = int(number[-_DIGITS:])
    return last % _ONE * _ONE_TIMES % _ONE, last % _OTHER * _OTHER_TIMES % _OTHER


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter: its key among the shared ones, and its size in bits.

    `below`: it has all numbers below this one for certain, so their bits need not be set again.
    """

    key: str
    bits: int
    below: int = field(default=0, compare=False)

    @staticmethod
    def size_for(count: int) -> int:
        """Return how many bits a new filter for so many numbers has."""
        return max(LEAST_BITS, count * BITS_EACH)

    @property
    def name(self) -> str:
        """Its key in the bus database, and its number of bits."""
        return f"{keys.SHARED}{self.key} {self.bits}"


class Filters:
    """The filters of the database that a replica holds."""

    def __init__(self, link: Link, database: int, holder: str) -> None:
        self._link = link
        self._holder = holder
        self._keys = [keys.lease(database), keys.row(database)]

    async def name(self, name: str, filter: Filter | None) -> bool:
        """Name a filter, which is complete, in our roster row; None: none. Return False if the lease or row is gone."""
        if filter is None:
            return bool(await self._link.script(NAME, self._keys, self._holder, _field(name), ""))
        words = (self._holder, _field(name), filter.name, filter.bits)
        return bool(await self._link.script(NAME, [*self._keys, keys.SHARED + filter.key], *words))

    async def named(self, name: str) -> Filter | None:
        """Return the filter that our roster row names."""
        text = await self._link.shared("HGET", self._keys[1], _field(name))
        if text is None:
            return None
        key, bits = text.rsplit(" ", 1)
        return Filter(key.removeprefix(keys.SHARED), int(bits))

    async def bits_set(self, filter: Filter) -> int:
        """Return how many bits of a filter are set; 0 if the key holds something else."""
        return await self._number("BITCOUNT", keys.SHARED + filter.key)

    async def counts(self, filter: Filter) -> bool:
        """Return whether a filter that was named still counts: its key has not ended, and nobody has deleted it."""
        return await self._number("GETBIT", keys.SHARED + filter.key, filter.bits) == 1

    async def _number(self, *command: str | int) -> int:
        try:
            return int(await self._link.shared(*command))
        except ResponseError:
            return 0


def _field(name: str) -> str:
    """Return the field of a roster row that names a filter."""
    return f"filter:{name}"
