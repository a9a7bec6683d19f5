"""Keys and queries of /values. A value has at most one record in the whole mesh.

In the database of its holder, under db{n}:

    values:records   hash   value -> "<request id> <expiry ms> <prime>^<exponent> <prime> <prime> ..."; see `notation`
    values:index     zset   one member per distinct prime and value, "<prime>:<value>", each number after its length
                            as a letter (b17:c136), so that lexical order is numerical order; all scores 0
    values:alone     hash   prime -> value, in the same letters, for primes of six digits and more. Most of these primes
                            have one value; it is here and not in the index. Further values are in the index
    values:expiry    zset   "<value> <value> ...", by the moment (ms) at which the sweep looks at these records. No
                            record expires before its moment; one that was refreshed gets a new moment then

Shared:

    values:where:{value}    string, PX   "<database> <class> <request id>" of the record; expires with it
    values:primes:{n}:{0,1} string, PX   bits: the filter of the primes in database n; see `primes`

Every key expires with the last record in it, so that nothing is left even in a database without a holder. The sweep
removes the records that expire earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from msgspec import Struct, json

from mesh.raw import Effects, Filter, Script, ServiceVerbs, Store

RECORDS = "values:records"
INDEX = "values:index"
ALONE = "values:alone"
EXPIRY = "values:expiry"
WHERE = "values:where:"

FIND = Script.beside(__file__, "search.lua", "find.lua")
#: They write and remove records together with their index.
PUT, REMOVE = "put-values", "remove-values"
_WRITTEN = (RECORDS, INDEX, ALONE)
_NEEDS = ("hash", "zset", "hash")
#: Answers a request with what FIND finds. It says itself what is wrong with its keys.
ANSWER, ANSWER_EACH = "find-values", "find-each"
VERBS = ServiceVerbs(
    Script.beside(__file__, "index_verbs.lua").source + Script.beside(__file__, "find_verb.lua", "find.lua").source,
    {PUT: _NEEDS, REMOVE: _NEEDS, ANSWER: (), ANSWER_EACH: ()},
)


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
    """One value as its holder keeps it: `expiry` in ms of Redis's clock, `factors` as text (see `notation`)."""

    id: str
    expiry: int
    factors: str

    @classmethod
    def parse(cls, text: str) -> Record:
        id, expiry, factors = f"{text} ".split(" ", 2)
        return cls(id, int(expiry), factors.rstrip())

    def __str__(self) -> str:
        return _text(self.id, self.expiry, self.factors)


def _text(id: str, expiry: int, factors: str) -> str:
    """Return a record as it is kept."""
    return f"{id} {expiry} {factors}" if factors else f"{id} {expiry}"


#: The prefix of a number, by the number of its digits: "a" to "y" for 1 to 25 digits, then "z0026" and so on. One
#: letter saves memory in the index, which is most of what is stored. A table saves time: each value needs about five
#: prefixes.
_LENGTHS = [chr(ord("a") - 1 + length) if length < 26 else f"z{length:04d}" for length in range(4001)]


def ordered(number: str) -> str:
    """Return a number as text whose lexical order is the numerical one."""
    return _LENGTHS[len(number)] + number


def digits(text: str) -> str:
    """Return the number that `ordered` has written."""
    return text[5:] if text[0] == "z" else text[1:]


#: Bytes that Redis takes for an entry beside its text, about: measured with many small values.
ENTRY_BYTES = 90


def size(value: str, factors: str) -> int:
    """Return about how many bytes of Redis a value takes: its record, its place, and one entry for each prime.

    Each of these contains the value, so 1000 digits of many different primes take 340 kB.
    """
    primes = 1 + factors.count(" ")
    return (len(value) + ENTRY_BYTES) * (3 + primes) + 2 * len(factors)


async def places(store: Store, values: Sequence[str]) -> list[str | None]:
    """Return where each value's record is said to be, as text to be expected at the commit."""
    return await store.shared.mget(*[WHERE + value for value in values])


def places_found(text: str, count: int) -> list[str | None] | None:
    """Return the places of so many values as the submission of their request has found them; None for another text."""
    if count == 1:
        return [text or None]
    try:
        found = _read_texts(text)
    except ValueError:
        return None
    return [each or None for each in found] if len(found) == count else None


_read_texts = json.Decoder(list[str]).decode


async def records(store: Store, values: Sequence[str]) -> list[Record | None]:
    """Return our own records of these values."""
    found = await store.hmget(RECORDS, *values)
    return [None if text is None else Record.parse(text) for text in found]


def put(
    transaction: Effects,
    place: Place,
    expiries: Mapping[str, int],
    factors: Mapping[str, str],
    before: Mapping[str, Record] = MappingProxyType({}),
    filters: Sequence[Filter] = (),
) -> None:
    """Write the records of one request, with their expiries and factors, and say where they are.

    `before` are the records of these values that this database has now. `filters` get the primes of what is written.
    """
    if not expiries:
        return
    ends: dict[int, list[str]] = {}
    for value, expiry in expiries.items():
        ends.setdefault(expiry, []).append(value)
    words = [word for value, end in expiries.items() for word in (value, _text(place.id, end, factors[value]))]
    transaction.write_with(PUT, _WRITTEN, words, [" ".join(f"{filter.name} {filter.below}" for filter in filters)])
    for filter in filters:
        transaction.shared.keep_until(filter.key, max(ends))
    for expiry, values in ends.items():
        transaction.shared.set_until([WHERE + value for value in values], str(place), expiry)
        schedule(transaction, expiry, [v for v in values if v not in before or expiry < before[v].expiry])
    for key in (RECORDS, INDEX, ALONE, EXPIRY):
        transaction.keep_until(key, max(ends))


def schedule(transaction: Effects, expiry: int, values: Sequence[str]) -> None:
    """Have the sweep look at these values at the moment `expiry` (ms)."""
    if values:
        transaction.zadd(EXPIRY, {" ".join(values): expiry})


def expect_places(transaction: Effects, places: Mapping[str, str | None]) -> None:
    """Let the commit fail if another request has moved or written one of these records since its place was read."""
    transaction.shared.expect_each({WHERE + value: place for value, place in places.items()})


def remove(transaction: Effects, over: Mapping[str, Record]) -> None:
    """Remove our records of these values. The commit fails if one of them is no longer the record given here."""
    for value, record in over.items():
        transaction.expect(RECORDS, str(record), value)
    transaction.write_with(REMOVE, _WRITTEN, [word for pair in over.items() for word in map(str, pair)])


async def due(store: Store, moment_ms: int, most: int) -> list[list[str]]:
    """Return the values that are due for the sweep, in the groups of `schedule`, the earliest first."""
    groups = await store.zrangebyscore(EXPIRY, "-inf", moment_ms, most)
    return [group.split() for group in groups]


def unschedule(transaction: Effects, values: Sequence[str]) -> None:
    """Remove a group of values from the list of the sweep."""
    transaction.zrem(EXPIRY, " ".join(values))


class Part(Struct, frozen=True):
    """Some values of a database that have a prime factor, ascending.

    No value up to `until` is left out; `until` is "" if there are no further values. `found` is text,
    "c136=2 2 2 17;c137=137". Each value stands there as `ordered` writes it, so a sort of the lines of several
    databases puts the values in order. In an answer of an earlier release it is a list: a value, its record, and so on.
    """

    until: str
    found: str | list[str]


#: Reads an answer. It copies the text of its values, and does not look at them.
read_part = json.Decoder(Part).decode


class Parts(Struct, frozen=True):
    """The answers to several questions, in their order."""

    each: list[Part]


read_parts = json.Decoder(Parts).decode


#: How much one search returns, and how many entries it looks at. More would hold the server or the event loop for long.
FOUND_VALUES = 2000
FOUND_BYTES = 100_000
LOOKED_AT = 4000
#: The keys of a search.
_SEARCHED = [INDEX, ALONE, RECORDS]


class Conditions(NamedTuple):
    """Values to find: those with a prime factor that are above `after` ("" for all), as of a moment, up to so many."""

    prime: str
    moment_ms: int
    most: int
    after: str

    @property
    def words(self) -> list[str | int]:
        """The words of find.lua after its keys."""
        return [ordered(self.prime), self.above, self.moment_ms, self.limit, FOUND_BYTES, LOOKED_AT]

    @property
    def above(self) -> str:
        return ordered(self.after) if self.after else ""

    @property
    def limit(self) -> int:
        return max(1, min(int(self.most), FOUND_VALUES))


async def find(store: Store, conditions: Conditions) -> tuple[str, str]:
    """Return values of our database: `until` and the text of a Part."""
    until, text = await store.script(FIND, _SEARCHED, *conditions.words)
    return until, text


def answer(transaction: Effects, conditions: Conditions) -> None:
    """Answer the request with values of our database, as they are at the commit, which `read_part` reads."""
    transaction.answer_with(ANSWER, _SEARCHED, conditions.words)


def answer_each(transaction: Effects, moment_ms: int, each: Sequence[Conditions]) -> None:
    """Answer the request with values of our database for several conditions of one moment, which `read_parts` reads."""
    words = [word for one in each for word in (ordered(one.prime), one.above, one.limit)]
    transaction.answer_with(ANSWER_EACH, _SEARCHED, [moment_ms, FOUND_BYTES, LOOKED_AT, *words])


def flat(text: str) -> list[str]:
    """Return the values of a part's text, each with a record, as earlier releases expect them.

    They use the id of a record to choose between two records of a value. Both have the same factors, so any id will do.
    """
    found: list[str] = []
    for line in text.split(";") if text else ():
        value, _, factors = line.partition("=")
        found += (digits(value), f"0-0 0 {factors}")
    return found
