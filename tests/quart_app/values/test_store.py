"""Records, their index and their place: bare, and over a Redis."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.raw import NEVER, Effects, Replica, Request, Worker
from mesh.requests.scripts import commit_with, when_full
from mesh.testing.fake_server import without_flags
from mesh.wire.codec import encode
from quart_app.values import notation
from quart_app.values import store as records
from quart_app.values.store import Conditions, Part, Place, Record, read_part, with_prefix
from tests.support import values_index
from tests.support.backend import Backend


def text(factors: list[int]) -> str:
    """Factors as records have them."""
    return notation.powers(sorted(Counter(factors).items()))


naturals = st.integers(0, 10**300)


@given(naturals, naturals)
def test_the_order_of_the_texts_is_that_of_the_numbers(one: int, other: int) -> None:
    """The order holds at any size, because the index is a lexical one."""
    assert (with_prefix(str(one)) < with_prefix(str(other))) == (one < other)


@pytest.mark.parametrize(
    ("number", "text"), [(7, "a7"), (10**24, f"y{10**24}"), (10**25, f"z0026{10**25}"), (10**3999, f"z4000{10**3999}")]
)
def test_a_number_stands_after_its_length(number: int, text: str) -> None:
    """The length is a letter where one is enough; the longest value there may be has a place, too."""
    assert with_prefix(str(number)) == text and records.without_prefix(text) == str(number)


@given(st.lists(naturals.map(lambda n: n + 2), max_size=5), st.integers(0, 2**60))
def test_a_record_is_read_as_it_was_written(factors: list[int], expiry: int) -> None:
    """A record is text that a person can read."""
    record = Record("1700000000000-1", expiry, " ".join(map(str, factors)))
    assert Record.parse(str(record)) == record


def test_a_place_is_read_as_it_was_written() -> None:
    """A place has the database, the class and the request that wrote it."""
    assert str(Place(3, "C", "17-0")) == "3 C 17-0"
    assert Place.parse("3 C 17-0") == Place(3, "C", "17-0")


WORKER = Worker()
WORKER.uses(records.FIND_SCRIPT)
WORKER.writes_with(records.VERBS)
COMMIT = commit_with(WORKER.fragments)


async def reading(backend: Backend) -> Replica:
    return await backend.join(WORKER)


async def write(replica: Replica, *values: tuple[int, int, list[int]]) -> None:
    transaction = replica.transaction()
    for value, expiry, factors in values:
        place = Place(replica.database, replica.cls, f"{value}-0")
        records.put(transaction, place, {str(value): expiry}, {str(value): text(factors)})
    assert await replica.commit(transaction)


async def found(replica: Replica, prime: int, moment: int, most: int = 100, after: int = 0) -> list[int]:
    above = str(after) if after else ""
    _, text = await records.find(replica.store(), Conditions(str(prime), moment, most, above))
    return values_of(text)


def values_of(part: str) -> list[int]:
    return [int(value) for value in records.as_flat_list(part)[::2]]


async def test_the_index_finds_by_prime_in_numerical_order(backend: Backend) -> None:
    """A prime that begins like another is another; a value is found by each of its primes, once."""
    one = await reading(backend)
    now = one.now_ms()
    late = now + 60_000
    await write(
        one, (12, late, [2, 2, 3]), (2, late, [2]), (100, late, [2, 2, 5, 5]), (46, late, [2, 23]), (1, late, []),
        (10**40 * 2, late, [2] * 41 + [5] * 40), (10**24 * 2, late, [2] * 25 + [5] * 24),
        (10**25 * 2, late, [2] * 26 + [5] * 25),
    )  # fmt: skip
    assert await found(one, 2, now) == [2, 12, 46, 100, 10**24 * 2, 10**25 * 2, 10**40 * 2]
    assert await found(one, 23, now) == [46]
    assert await found(one, 3, now) == [12]
    assert await found(one, 7, now) == []
    assert await found(one, 2, now, most=2) == [2, 12]
    assert await found(one, 2, now, most=2, after=12) == [46, 100]
    assert await found(one, 2, now, most=9, after=50) == [100, 10**24 * 2, 10**25 * 2, 10**40 * 2], (
        "after need not be there"
    )
    assert await found(one, 2, now, most=1, after=10**24 * 2) == [10**25 * 2]


#: Values that share primes, rare ones too, and their prime factors.
SHARING = {
    math.prod(factors): factors
    for factors in ([2, 100003], [3, 100003], [100003] * 2, [2, 3, 100003], [100003, 10**24 + 7], [2, 10**24 + 7],
                    [3, 99991], [2, 3], [100003] * 6, [10**24 + 7] * 2, [100003])
}  # fmt: skip


class Memory:
    """A Redis as far as the commit and the search need one: for many small histories, one after the other."""

    def __init__(self) -> None:
        self.fake = fakeredis.FakeRedis(decode_responses=True)
        self.fake.set("lease", "me")
        self.values: dict[str, Record] = {}
        self.batch = 0

    def commit(self, transaction: Effects) -> None:
        self.batch += 1
        text, _, longs, _ = transaction.wire()
        words = ("lease", "books", "committed", "me", 1000, 0, 0, "replica-2", self.batch, b"[%b]" % text, *longs)
        outcomes = self.fake.eval(without_flags(COMMIT.source), 3, *words)
        assert outcomes == '["done"]'

    def put(self, values: dict[str, Record]) -> None:
        transaction = Effects(0, "replica-2", verbs=WORKER.verbs)
        factors = {value: record.factors for value, record in values.items()}
        expiries = {value: record.expiry_ms for value, record in values.items()}
        before = {value: self.values[value] for value in values if value in self.values}
        records.put(transaction, Place(0, "A", "1-0"), expiries, factors, before)
        self.commit(transaction)
        self.values |= values

    def remove(self, value: str) -> None:
        transaction = Effects(0, "replica-2", verbs=WORKER.verbs)
        records.remove(transaction, {value: self.values.pop(value)})
        self.commit(transaction)

    def found(self, prime: int, moment: int, most: int, after: int = 0) -> list[int]:
        names = [f"db0:{name}" for name in (records.INDEX, records.ALONE, records.RECORDS)]
        conditions = Conditions(str(prime), moment, most, str(after) if after else "")
        until, part = self.fake.eval(without_flags(records.FIND_SCRIPT.source), 3, *names, *conditions.words)
        assert part.split(";") == sorted(part.split(";"))
        values = values_of(part)
        assert until == (str(values[-1]) if len(values) == most else "")
        return values

    def members(self) -> set[str]:
        """What the index says, wherever it is kept."""
        alone = self.fake.hgetall(f"db0:{records.ALONE}")
        return {*self.fake.zrange(f"db0:{records.INDEX}", 0, -1), *map(":".join, alone.items())}

    def pages(self, prime: int, moment: int, most: int) -> list[int]:
        """All there is, by pages."""
        all_of_them: list[int] = []
        while page := self.found(prime, moment, most, all_of_them[-1] if all_of_them else 0):
            all_of_them += page
            assert len(page) <= most
            assert len(all_of_them) <= len(self.values), "a page begins after the one before"
        return all_of_them


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from(list(SHARING)), min_size=1, max_size=4)), max_size=12),
    st.integers(1, 3),
)
def test_the_index_is_that_of_the_records_whatever_was_written_and_removed(
    history: list[tuple[bool, set[int]]], most: int
) -> None:
    """Rare primes, too, which several values share, in any order of writing, refreshing and removing."""
    memory, early, late = Memory(), 2**50, 2**51
    for remove, values in history:
        if not remove:
            ends = {value: late if value % 3 else early for value in values}
            memory.put({str(value): Record("1-0", end, text(SHARING[value])) for value, end in ends.items()})
        for value in {str(value) for value in values} & memory.values.keys() if remove else ():
            memory.remove(value)
    for prime in {prime for factors in SHARING.values() for prime in factors}:
        for moment in (early - 1, early):
            living = [int(value) for value, record in memory.values.items() if record.expiry_ms > moment]
            expected = sorted(value for value in living if prime in SHARING[value])
            assert memory.pages(prime, moment, most) == memory.found(prime, moment, 1000) == expected
    texts = {value: record.factors for value, record in memory.values.items()}
    assert memory.members() == values_index.members(texts)


def test_what_ends_at_different_times_is_written_by_as_few_commands() -> None:
    """Records and their index, and the sweep's list, take one command each; only the places end one by one."""
    transaction = Effects(3, "replica-2", verbs=WORKER.verbs)
    expiries = {str(2 * n): 1000 + n for n in range(1, 50)}
    factors = {str(2 * n): text([2, n, 1000003]) for n in range(1, 50)}
    records.put(transaction, Place(3, "A", "1-0"), expiries, factors)
    verbs = Counter(str(command[2]) for command in transaction.writes.commands())
    assert verbs == {"put-values": 1, "ZADD": 1, "set-all": 49, "keep": 4}


async def test_a_record_past_its_time_is_not_found_and_does_not_count(backend: Backend) -> None:
    """The moment is the request's own: expiry at that very millisecond is over."""
    one = await reading(backend)
    now = one.now_ms()
    await write(one, *[(2 * n, now + (50_000 if n % 2 else 90_000), [2, n]) for n in (3, 4, 5, 6, 7)])
    assert await found(one, 2, now + 49_999) == [6, 8, 10, 12, 14]
    assert await found(one, 2, now + 50_000) == [8, 12]
    assert await found(one, 2, now + 50_000, most=2) == [8, 12]


async def test_a_part_has_the_factors_as_records_have_them(backend: Backend) -> None:
    """For releases that expect records, each value has one."""
    one = await reading(backend)
    now = one.now_ms()
    await write(one, (12, now + 60_000, [2, 2, 3]), (2**100, now + 60_000, [2] * 100))
    until, part = await records.find(one.store(), Conditions("2", now, 10, ""))
    assert (until, part) == ("", f"b12=2 2 3;z0031{2**100}=2^100")
    assert records.as_flat_list(part) == ["12", "0-0 0 2 2 3", str(2**100), "0-0 0 2^100"]
    assert records.as_flat_list("") == []


def test_a_server_whose_memory_is_full_answers_with_what_it_has() -> None:
    """The answer is not counted as something to store: a reply of that size never is."""
    memory, stream, replies = Memory(), "mesh:requests:db0", "mesh:replies:replica-1"
    memory.put({str(2 * n): Record("1-0", 2**51, f"2 {n}") for n in (3, 5, 7)})
    memory.fake.xadd(replies, {"first": "entry"})
    memory.fake.xgroup_create(stream, "workers", "0", mkstream=True)
    id = memory.fake.xadd(stream, {"op": "values.find"})
    memory.fake.xreadgroup("workers", "replica-2", {stream: ">"})
    request = Request(stream, id, "values.find", "k", "replica-1", replies, NEVER, {})
    transaction = Effects(0, "replica-2", request, WORKER.verbs)
    records.answer_search(transaction, Conditions("2", 2**50, 2, ""))
    text, _, longs, _ = transaction.wire()
    words = ("lease", "books", "committed", "me", 1000, 0, 0, "replica-2", 9, b"[%b]" % text, *longs)
    assert memory.fake.eval(without_flags(when_full(COMMIT).source), 3, *words) == '["done"]'
    (_, (_, fields)) = memory.fake.xrange(replies)
    assert fields["body"] == '{"until":"10","found":"a6=2 3;b10=2 5"}'


@pytest.mark.parametrize("found", ["", "b12=2 2 3;z0031" + "1" * 31 + "=2^100", ["12", "1-0 2 2 2 3"]])
def test_an_answer_is_read_in_the_form_of_each_release(found: Any) -> None:
    """Text now; values and records in turn before."""
    body: dict[str, Any] = {"until": "12", "found": found}
    for text in (encode(body), json.dumps(body)):
        assert read_part(text) == Part("12", found)
    for wrong in ("{}", "[]", '{"until":"","found":5}', "", '{"until":"","found":"a'):
        with pytest.raises(ValueError):
            read_part(wrong)


async def test_everything_expires_with_the_last_record(backend: Backend) -> None:
    """Nothing is left even in a database that nobody holds."""
    one = await reading(backend)
    now = one.now_ms()
    await write(one, (6, now + 90_000, [2, 3]), (10, now + 30_000, [2, 5]), (2000006, now + 30_000, [2, 1000003]))
    await write(one, (3000009, now + 90_000, [3, 1000003]))
    own, bus = backend.redis(db=one.database), backend.redis()
    for name in (records.RECORDS, records.INDEX, records.ALONE, records.EXPIRY):
        assert await own.pexpiretime(f"db{one.database}:{name}") == now + 90_000
    assert await bus.pexpiretime("shared:values:where:10") == now + 30_000
    assert await bus.get("shared:values:where:10") == f"{one.database} {one.cls} 10-0"
    await own.aclose()
    await bus.aclose()


async def test_a_removal_takes_exactly_the_record_it_means(backend: Backend) -> None:
    """A record that was written again meanwhile stays, with its index."""
    one = await reading(backend)
    now = one.now_ms()
    await write(one, (6, now + 90_000, [2, 3]), (10, now + 90_000, [2, 5]))
    (seen,) = await records.read_records(one.store(), ["6"])
    assert seen is not None
    await write(one, (6, now + 95_000, [2, 3]))
    for record, committed, left in (
        (seen, False, [6, 10]),
        ((await records.read_records(one.store(), ["6"]))[0], True, [10]),
    ):
        transaction = one.transaction()
        assert record is not None
        records.remove(transaction, {"6": record})
        assert await one.commit(transaction) is committed
        assert await found(one, 2, now) == left
    assert await found(one, 3, now) == []
