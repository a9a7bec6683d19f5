"""Filters: they say which databases may have something, so that a gather need not ask the others.

A filter (a Bloom filter) is a string of bits in the bus database. A name, such as that of the primes of `/values`,
stands for one filter in each database. What a filter has is a number in decimal digits, called a thing here. Each thing
that the database has sets two bits of the filter, and nothing clears a bit. If one of a thing's two bits is missing,
the database certainly does not have the thing. If both bits are set, the database may have it.

The holder of a database makes the filter. Once the filter is complete, the holder names it in its roster row. The row
ends with the holder, and the grant to a successor deletes it, so a filter counts only while its maker holds the
database. If a row names no filter, gathers always ask its database: the holder has just begun, or is of an earlier
release. `submit.lua` reads the filters in the step that submits the requests.

When the filter is named, its last bit is set, too. If the key of the filter expires or is deleted, this bit is lost
with all others, and later writes do not set it again. A filter without its last bit does not count.

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

#: Names a filter in the roster row, or removes its name. KEYS: lease, row, and the filter if it is to be named. ARGV:
#: holder, field, filter or "" to remove it, its number of bits. Returns 1, or 0 without this lease or a row.
#: It also runs when memory is full (`allow-oom`), so that a replica can join then. It stores little.
NAME_FILTER = Script(
    """#!lua flags=allow-oom
local lease_key, row_key = KEYS[1], KEYS[2]
if redis.call('GET', lease_key) ~= ARGV[1] or redis.call('EXISTS', row_key) == 0 then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', row_key, ARGV[2])
else
  redis.call('HSET', row_key, ARGV[2], ARGV[3])
  -- If the filter has no key, its last bit stays 0, so it does not count.
  if redis.call('EXISTS', KEYS[3]) == 1 then redis.pcall('BITFIELD', KEYS[3], 'SET', 'u1', ARGV[4], 1) end
end
return 1
"""
)
#: Bits for each thing when a filter is made, and the fewest bits of a filter. With more bits, a gather asks fewer
#: databases that have nothing, but the filter takes more memory of Redis.
BITS_EACH = 32
LEAST_BITS = 4096

#: Two primes below 2^31, and a factor below 2^21 for each: Lua's doubles are exact for the products. Others would do as
#: well, but all releases that share a Redis need the same ones.
_FIRST_PRIME, _FIRST_FACTOR = 2147483647, 1640531
_SECOND_PRIME, _SECOND_FACTOR = 2147483629, 1327217
#: How many digits of a number are hashed, the last ones: a longer integer would not fit in a double.
_HASHED_DIGITS = 15


class Among(NamedTuple):
    """The live databases whose filter `name` has both bits of a pair, and those without such a filter.

    A pair has the two hashes of one number. submit.lua makes positions of bits from them, with the size of each filter.
    """

    name: str
    pairs: tuple[tuple[int, int], ...]

    @property
    def target(self) -> str:
        """The name of these databases in scripts."""
        return " ".join(["*", self.name, *[f"{first} {second}" for first, second in self.pairs]])


def among(name: str, *numbers: str) -> Among:
    """Return the databases that may have one of these numbers, as their filters `name` say."""
    return Among(name, tuple(map(_hashes, numbers)))


def _hashes(number: str) -> tuple[int, int]:
    """Return two hashes of 31 bits for a number in decimal digits, as `mark_numbers` of commit_verbs.lua finds them."""
    hashed = int(number[-_HASHED_DIGITS:])
    return hashed % _FIRST_PRIME * _FIRST_FACTOR % _FIRST_PRIME, hashed % _SECOND_PRIME * _SECOND_FACTOR % _SECOND_PRIME


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter: its key among the shared ones, and its size in bits.

    `below`: all numbers below this one are certainly in the filter, so their bits need not be set again. The service
    that makes the filter sets it; with 0, each number gets its bits.
    """

    key: str
    bits: int
    below: int = field(default=0, compare=False)

    @staticmethod
    def size_for(count: int) -> int:
        """Return how many bits a new filter for `count` numbers has."""
        return max(LEAST_BITS, count * BITS_EACH)

    @property
    def name(self) -> str:
        """Its value in a roster row: its key in the bus database, and its number of bits.

        The field of the row that has this value is named for what `among` and `Filters` call the name of a filter.
        """
        return f"{keys.SHARED}{self.key} {self.bits}"


class Filters:
    """The filters of the database that a replica holds. `Replica.filters` is such an object; services use it.

    `name` is the name under which gathers ask for a filter: see `among`.
    """

    def __init__(self, link: Link, database: int, holder: str) -> None:
        self._link = link
        self._holder = holder
        self._keys = [keys.lease(database), keys.row(database)]

    async def put_in_row(self, name: str, filter: Filter | None) -> bool:
        """Make our roster row name a complete filter; None: name none. Return False if the lease or the row is gone."""
        if filter is None:
            return bool(await self._link.script(NAME_FILTER, self._keys, self._holder, _row_field(name), ""))
        words = (self._holder, _row_field(name), filter.name, filter.bits)
        return bool(await self._link.script(NAME_FILTER, [*self._keys, keys.SHARED + filter.key], *words))

    async def read_from_row(self, name: str) -> Filter | None:
        """Return the filter of this name that our roster row names; None if it names none."""
        key_and_bits = await self._link.shared("HGET", self._keys[1], _row_field(name))
        if key_and_bits is None:
            return None
        key, bits = key_and_bits.rsplit(" ", 1)
        return Filter(key.removeprefix(keys.SHARED), int(bits))

    async def count_set_bits(self, filter: Filter) -> int:
        """Return how many bits of a filter are set; 0 if the key holds something else."""
        return await self._integer_reply("BITCOUNT", keys.SHARED + filter.key)

    async def is_valid(self, filter: Filter) -> bool:
        """Return whether a filter that was named is still valid: its key has not expired, and nobody has deleted it."""
        # Numbers set the bits 0 to `bits` - 1. The bit after them is the last one, which NAME_FILTER sets.
        return await self._integer_reply("GETBIT", keys.SHARED + filter.key, filter.bits) == 1

    async def _integer_reply(self, *command: str | int) -> int:
        """Return the number that a command answers; 0 if its key has another type."""
        try:
            return int(await self._link.shared(*command))
        except ResponseError:
            return 0


def _row_field(name: str) -> str:
    """Return the field of a roster row that names the filter of this name."""
    return f"filter:{name}"
