"""Keys and queries of /values. A value has at most one record in the whole mesh.

In the database of its holder, under db{n}:

    values:records   hash   value -> "<request id> <expiry ms> <factor> <factor> ..."
    values:index     zset   one member per distinct prime and value, "<prime>:<value>", each number after its length in
                            four digits, so that lexical order is numerical order; all scores 0
    values:expiry    zset   value by expiry in ms

Shared:

    values:where:{value}    string, PX   "<database> <class> <request id>" of the record; expires with it

Every key expires with the last record in it, so that nothing is left even in a database that nobody holds; the sweep
removes what expires before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mesh import Store, Transaction
from mesh.scripts import Script

RECORDS = "values:records"
INDEX = "values:index"
EXPIRY = "values:expiry"
WHERE = "values:where:"

FIND = Script.read(Path(__file__).parent / "find.lua")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value's record is: database, class, and the id of the request that last wrote it."""

    database: int
    cls: str
    id: str

    @classmethod
    def parse(cls, text: str) -> Place:
        database, letter, id = text.split(" ")
        return cls(int(database), letter, id)

    def __str__(self) -> str:
        return f"{self.database} {self.cls} {self.id}"


@dataclass(frozen=True, slots=True)
class Record:
    """One value as its holder keeps it; `expiry` in ms of Redis's clock."""

    id: str
    expiry: int
    factors: list[int]

    @classmethod
    def parse(cls, text: str) -> Record:
        id, expiry, *factors = text.split(" ")
        return cls(id, int(expiry), [int(factor) for factor in factors])

    def __str__(self) -> str:
        return " ".join([self.id, str(self.expiry), *map(str, self.factors)])


def ordered(number: int) -> str:
    """A number as text whose lexical order is the numerical one."""
    text = str(number)
    return f"{len(text):04d}{text}"


def _members(value: int, factors: Iterable[int]) -> list[str]:
    return [f"{ordered(prime)}:{ordered(value)}" for prime in sorted(set(factors))]


async def places(store: Store, values: list[int]) -> list[str | None]:
    """Where each value's record is said to be, as text to be expected at the commit."""
    return await store.shared.mget(*(f"{WHERE}{value}" for value in values))


async def records(store: Store, values: list[int]) -> list[Record | None]:
    """Our own records of these values."""
    found = await store.hmget(RECORDS, *values)
    return [None if text is None else Record.parse(text) for text in found]


def put(transaction: Transaction, value: int, record: Record, place: Place) -> None:
    """Write a record, whatever was here of that value before, and say where it is."""
    transaction.hset(RECORDS, {str(value): str(record)})
    transaction.zadd(INDEX, dict.fromkeys(_members(value, record.factors), 0))
    transaction.zadd(EXPIRY, {str(value): record.expiry})
    for key in (RECORDS, INDEX, EXPIRY):
        transaction.keep_until(key, record.expiry)
    transaction.shared.set(f"{WHERE}{value}", str(place), "PXAT", record.expiry)


def expect_place(transaction: Transaction, value: int, place: str | None) -> None:
    """Commit only if the value's record is still where it was when we looked."""
    transaction.shared.expect(f"{WHERE}{value}", place)


def remove(transaction: Transaction, value: int, record: Record) -> None:
    """Remove our record of a value, if it is still this one."""
    transaction.expect(RECORDS, str(record), str(value))
    transaction.hdel(RECORDS, value)
    transaction.zrem(EXPIRY, value)
    if record.factors:
        transaction.zrem(INDEX, *_members(value, record.factors))


async def expired(store: Store, moment_ms: int, most: int) -> list[int]:
    """Values whose time is over, the longest first."""
    return [int(value) for value in await store.zrangebyscore(EXPIRY, "-inf", moment_ms, most)]


async def find(store: Store, prime: int, moment_ms: int, most: int, after: int) -> list[tuple[int, Record]]:
    """Our values that have this prime as a factor, above `after`, ascending, as of a moment."""
    start = f"({ordered(prime)}:{ordered(after)}" if after else f"[{ordered(prime)}:"
    flat = await store.script(FIND, [INDEX, RECORDS], start, f"({ordered(prime)};", moment_ms, most)
    return [(int(value), Record.parse(text)) for value, text in zip(flat[::2], flat[1::2], strict=True)]
