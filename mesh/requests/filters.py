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

The service sets the bits in the commit that writes the thing itself, with the verb `MARK` on the shared side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
#: Sets bits of a filter: `transaction.shared.write_with(MARK, [filter.key], filter.positions(numbers))`.
MARK = "mark"
#: Bits for each thing when a filter is made.
BITS_EACH = 32
LEAST_BITS = 4096

_WORD = (1 << 64) - 1
_ONE, _OTHER = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
#: Only so many last digits of a number are hashed: they are converted quickly, and are all digits of most numbers.
_DIGITS = 18


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
    """Return two numbers of 32 bits for the decimal digits of a number, the same in every process."""
    last = int(number[-_DIGITS:])
    return (last * _ONE & _WORD) >> 32, (last * _OTHER & _WORD) >> 32


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter: its key among the shared ones, and its size in bits."""

    key: str
    bits: int

    @staticmethod
    def size_for(count: int) -> int:
        """Return how many bits a new filter for so many numbers has."""
        return max(LEAST_BITS, count * BITS_EACH)

    def positions(self, numbers: Iterable[str]) -> list[str]:
        """Return the bits that these numbers set, as text, which needs no check before it is sent."""
        bits = self.bits
        return [str(each % bits) for number in numbers for each in _hashes(number)]


class Filters:
    """The filters of the database that a replica holds."""

    def __init__(self, link: Link, database: int, holder: str) -> None:
        self._link = link
        self._holder = holder
        self._keys = [keys.lease(database), keys.row(database)]

    async def name(self, name: str, filter: Filter | None) -> bool:
        """Name a filter, which is complete, in our roster row; None: none. Return False if the lease or row is gone."""
        if filter is None:
            return bool(await self._link.script(NAME, self._keys, self._holder, field(name), ""))
        key = keys.SHARED + filter.key
        words = (self._holder, field(name), f"{key} {filter.bits}", filter.bits)
        return bool(await self._link.script(NAME, [*self._keys, key], *words))

    async def named(self, name: str) -> Filter | None:
        """Return the filter that our roster row names."""
        text = await self._link.shared("HGET", self._keys[1], field(name))
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


def field(name: str) -> str:
    """Return the field of a roster row that names a filter."""
    return f"filter:{name}"
