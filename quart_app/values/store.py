"""Keys and queries of /values. One database of the mesh has the record of a value; the shared key `where` names it.

In the database that has the record, under db{n}:

    values:records   hash   value -> "<request id> <expiry ms> <factors>"; the module `notation` describes the factors
    values:index     zset   a member "<prime>:<value>" for each different prime factor of each value; all scores are 0.
                            A letter before each number says its length (b17:c136), so members sort as their numbers do
    values:alone     hash   prime -> value, both written as in the index, for primes of at least six digits. Most of
                            these primes divide one value only, so they need no member in the index. If such a prime
                            divides several values, one of them is here, and the others are in the index
    values:expiry    zset   members "<value> <value> ...", by the moment (ms) at which the sweep looks at their records.
                            No record expires before its moment. A put that makes a record expire later does not change
                            the moment. When the sweep then finds a record with a later expiry, it sets a new moment

Shared:

    values:where:{value}    string, PX   "<database> <class> <request id>" of the record; expires with the record
    values:primes:{n}:{0,1} string, PX   bits: the filter of the primes in database n; see the module `primes`

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

#: The keys of this module's docstring, without "db{n}:" or "shared:". WHERE is a prefix, which a value follows; the
#: others are whole keys, also the plural RECORDS.
RECORDS = "values:records"
INDEX = "values:index"
ALONE = "values:alone"
EXPIRY = "values:expiry"
WHERE = "values:where:"

FIND_SCRIPT = Script.beside(__file__, "search.lua", "find.lua")
#: The verbs that write and remove records together with their entries in INDEX and ALONE.
PUT_VERB, REMOVE_VERB = "put-values", "remove-values"
#: The keys of these verbs, and the types that the commit requires of these keys, in the same order.
_WRITTEN_KEYS = (RECORDS, INDEX, ALONE)
_WRITTEN_TYPES = ("hash", "zset", "hash")
#: The verbs that answer a request with one search or several. For these verbs the commit does not check the types of
#: the keys beforehand: find_verb.lua writes nothing, and returns an error if a key has another type.
ANSWER_VERB, ANSWER_EACH_VERB = "find-values", "find-each"
VERBS = ServiceVerbs(
    Script.beside(__file__, "index_verbs.lua").source + Script.beside(__file__, "find_verb.lua", "find.lua").source,
    {PUT_VERB: _WRITTEN_TYPES, REMOVE_VERB: _WRITTEN_TYPES, ANSWER_VERB: (), ANSWER_EACH_VERB: ()},
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value's record is: database, class, and the id of the request that last wrote it.

    The text form is the value of the key WHERE.
    """

    database: int
    #: the class of the database, a letter from A to D
    cls: str
    request_id: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse the value of a key WHERE. The parameter `cls` is this Python class; the field `cls` is a letter."""
        database, letter, request_id = text.split(" ")
        return cls(int(database), letter, request_id)

    def __str__(self) -> str:
        return f"{self.database} {self.cls} {self.request_id}"


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a value: the id of the request that wrote it, its expiry (ms of Redis's clock), and its factors."""

    request_id: str
    expiry_ms: int
    factors: str

    @classmethod
    def parse(cls, text: str) -> Record:
        # The record of the value 1 has no factors, so it has two parts only. The added space gives every text three.
        request_id, expiry_ms, factors = f"{text} ".split(" ", 2)
        return cls(request_id, int(expiry_ms), factors.rstrip())

    def __str__(self) -> str:
        return _record_text(self.request_id, self.expiry_ms, self.factors)


def _record_text(request_id: str, expiry_ms: int, factors: str) -> str:
    """Return a record as the text in RECORDS."""
    return f"{request_id} {expiry_ms} {factors}" if factors else f"{request_id} {expiry_ms}"


#: By number of digits: the prefix of a number in the index, "a" to "y" for 1 to 25 digits, then "z0026" and so on. Most
#: prefixes are a single letter. This saves memory, because most of what is stored is the index. The table saves time,
#: because each value needs about five prefixes. No value has more than 4000 digits (`ValuesSettings.max_digits`).
_PREFIXES = [chr(ord("a") - 1 + length) if length < 26 else f"z{length:04d}" for length in range(4001)]


def with_prefix(number: str) -> str:
    """Return a number (decimal digits) with its prefix. Such texts sort as their numbers do."""
    return _PREFIXES[len(number)] + number


def without_prefix(text: str) -> str:
    """Return the digits of a number that `with_prefix` has given a prefix: "z" and four digits, or another letter."""
    return text[5:] if text[0] == "z" else text[1:]


#: About how many bytes Redis takes for an entry of a key in addition to its text, measured with many small values.
#: With a lower number, puts would be accepted for which Redis has no memory left.
ENTRY_BYTES = 90


def record_bytes(value: str, factors: str) -> int:
    """Return about how many bytes of Redis a value takes. A put is Busy if its new values take more than is free.

    Three entries contain the value: its record, the key of its place, and its group in EXPIRY. For each different
    prime, an entry in INDEX or ALONE contains it, too. The factors are stored twice: in the record, and prime by prime
    in these entries. A value of 1000 digits with many different primes takes 340 kB.
    """
    prime_count = 1 + factors.count(" ")
    return (len(value) + ENTRY_BYTES) * (3 + prime_count) + 2 * len(factors)


async def read_places(store: Store, values: Sequence[str]) -> list[str | None]:
    """Return the text of each value's place; None for a value without a record.

    The texts are not parsed, because `expect_places` compares them with what Redis has at the commit.
    """
    return await store.shared.mget(*[WHERE + value for value in values])


def decode_places(text: str, count: int) -> list[str | None] | None:
    """Decode `Request.found`: the texts of the places of `count` values, which the submission of the request has read.

    For a value without a record, `text` has the empty text, and the result has None. Return None instead of a list if
    `text` does not have `count` texts: then the caller reads the places itself.
    """
    if count == 1:
        return [text or None]  # the submission makes a JSON list for several keys only
    try:
        texts = _decode_list(text)
    except ValueError:
        return None
    return [place_text or None for place_text in texts] if len(texts) == count else None


#: Decodes a JSON list of texts. Raises a ValueError for any other text.
_decode_list = json.Decoder(list[str]).decode


async def read_records(store: Store, values: Sequence[str]) -> list[Record | None]:
    """Return the records of these values in this replica's database; None for a value that has no record there."""
    texts = await store.hmget(RECORDS, *values)
    return [None if text is None else Record.parse(text) for text in texts]


def put(
    transaction: Effects,
    place: Place,
    expiries: Mapping[str, int],
    factors: Mapping[str, str],
    existing: Mapping[str, Record] = MappingProxyType({}),
    filters: Sequence[Filter] = (),
) -> None:
    """Write the records of one request, and their places. `expiries` (ms) and `factors` are by value.

    `existing` has the records of these values that this database has already. PUT_VERB reads the primes from the
    records, and sets their bits in `filters`. It skips the primes below `filter.below`, because the filter has all of
    them: the module `primes` finds this bound when it makes the filter.
    """
    if not expiries:
        return
    # Values with the same expiry share one command and one group in EXPIRY.
    values_by_expiry: dict[int, list[str]] = {}
    for value, expiry_ms in expiries.items():
        values_by_expiry.setdefault(expiry_ms, []).append(value)
    words = [
        word
        for value, expiry_ms in expiries.items()
        for word in (value, _record_text(place.request_id, expiry_ms, factors[value]))
    ]
    # `filter.name` is the text "<key> <number of bits>", as a roster row has it.
    transaction.write_with(
        PUT_VERB, _WRITTEN_KEYS, words, [" ".join(f"{filter.name} {filter.below}" for filter in filters)]
    )
    for filter in filters:
        transaction.shared.keep_until(filter.key, max(values_by_expiry))
    for expiry_ms, values in values_by_expiry.items():
        transaction.shared.set_until([WHERE + value for value in values], str(place), expiry_ms)
        # A value whose record expires later than before is in EXPIRY already, by an earlier moment. That is enough.
        add_to_expiry(
            transaction,
            expiry_ms,
            [value for value in values if value not in existing or expiry_ms < existing[value].expiry_ms],
        )
    for key in (RECORDS, INDEX, ALONE, EXPIRY):
        transaction.keep_until(key, max(values_by_expiry))


def add_to_expiry(transaction: Effects, moment_ms: int, values: Sequence[str]) -> None:
    """Have the sweep look at these values, as one group, at `moment_ms`. The sweep calls this, too."""
    if values:
        transaction.zadd(EXPIRY, {" ".join(values): moment_ms})


def expect_places(transaction: Effects, place_texts: Mapping[str, str | None]) -> None:
    """Let the commit fail if another request has moved or written one of these records since its place was read."""
    transaction.shared.expect_each({WHERE + value: text for value, text in place_texts.items()})


def remove(transaction: Effects, records: Mapping[str, Record]) -> None:
    """Remove these records from this replica's database. The commit fails if one of them has changed by then."""
    for value, record in records.items():
        transaction.expect(RECORDS, str(record), value)
    transaction.write_with(REMOVE_VERB, _WRITTEN_KEYS, [word for pair in records.items() for word in map(str, pair)])


async def read_due(store: Store, moment_ms: int, most_groups: int) -> list[list[str]]:
    """Return the values that are due for the sweep, the earliest first, grouped as `add_to_expiry` was given them."""
    members = await store.zrangebyscore(EXPIRY, "-inf", moment_ms, most_groups)
    return [member.split() for member in members]


def remove_from_expiry(transaction: Effects, values: Sequence[str]) -> None:
    """Remove a group of values from the list of the sweep, if the list has a group of exactly these values."""
    transaction.zrem(EXPIRY, " ".join(values))


class Part(Struct, frozen=True):
    """The answer to one search: values of one database that have a prime factor, ascending.

    The part is complete up to the value `until`, or altogether if `until` is "". `found` has a line for each value with
    its factors: "c136=2 2 2 17;c137=137". Each value has the prefix that `with_prefix` writes, so sorting the lines of
    several databases sorts their values. A replica of an earlier release sends a list instead (see `as_flat_list`).
    """

    until: str
    found: str | list[str]


#: Decodes the answer to one search. To save time, the text of the values is copied and not parsed.
read_part = json.Decoder(Part).decode


class Parts(Struct, frozen=True):
    """The answers to the searches of one request, in the order of the request."""

    each: list[Part]


#: Decodes the answers to the searches of one request.
read_parts = json.Decoder(Parts).decode


#: The most values that one search returns, the most bytes of its answer, and the most records that it looks at. A
#: longer search would block the server for long, and a longer answer the event loop. With less, a client's search needs
#: more gathers.
MOST_FOUND_VALUES = 2000
MOST_FOUND_BYTES = 100_000
MOST_LOOKED_AT = 4000
#: The keys of a search.
_SEARCHED_KEYS = [INDEX, ALONE, RECORDS]


class Conditions(NamedTuple):
    """One search in one database: up to `most` values above `after` ("" for all) with the factor `prime`.

    Their records must be unexpired at `moment_ms`. A client's search (`Search`) makes one or more of these searches in
    each database.
    """

    prime: str
    moment_ms: int
    most: int
    after: str

    @property
    def words(self) -> list[str | int]:
        """The words for find.lua that follow the keys."""
        return [
            with_prefix(self.prime),
            self.after_word,
            self.moment_ms,
            self.most_word,
            MOST_FOUND_BYTES,
            MOST_LOOKED_AT,
        ]

    @property
    def after_word(self) -> str:
        """Return `after` as find.lua expects it: with its prefix, or ""."""
        return with_prefix(self.after) if self.after else ""

    @property
    def most_word(self) -> int:
        """Return `most` from 1 to MOST_FOUND_VALUES, whatever the asker sent."""
        return max(1, min(int(self.most), MOST_FOUND_VALUES))


async def find(store: Store, conditions: Conditions) -> tuple[str, str]:
    """Search this replica's database; return `until` and `found` as in a Part. `found` is text.

    Only askers of releases without "as" get their answers in this way, because the handler has to make a list for them.
    For all other askers, `answer_search` lets the commit search, so the found text does not pass the process.
    """
    until, text = await store.script(FIND_SCRIPT, _SEARCHED_KEYS, *conditions.words)
    return until, text


def answer_search(transaction: Effects, conditions: Conditions) -> None:
    """Answer the request with a search that the commit makes in this database; `read_part` reads the answer."""
    transaction.answer_with(ANSWER_VERB, _SEARCHED_KEYS, conditions.words)


def answer_searches(transaction: Effects, moment_ms: int, searches: Sequence[Conditions]) -> None:
    """Answer the request with several searches that the commit makes, all as of one moment; `read_parts` reads them."""
    words = [word for search in searches for word in (with_prefix(search.prime), search.after_word, search.most_word)]
    transaction.answer_with(ANSWER_EACH_VERB, _SEARCHED_KEYS, [moment_ms, MOST_FOUND_BYTES, MOST_LOOKED_AT, *words])


def as_flat_list(text: str) -> list[str]:
    """Return the text of a Part as the list that earlier releases expect: a value, its record, the next value, ...

    These releases send no "as" in the body of a FIND. The list is needed as long as such a release may share the Redis.
    Each record in the list is "0-0 0 <factors>", without its true id and expiry. If two databases have a record of one
    value, an earlier release keeps the record with the greater id. Both have the same factors, so either may be kept.
    """
    alternating: list[str] = []
    for line in text.split(";") if text else ():
        value, _, factors = line.partition("=")
        alternating += (without_prefix(value), f"0-0 0 {factors}")
    return alternating
