"""Filters: a gather asks every live database that may have something, and no other one that says what it has."""

from __future__ import annotations

from collections.abc import Iterable

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.raw import Among, Body, Effects, Filter, Replica, Request, Store, Worker, among
from mesh.requests.filters import Filters
from mesh.requests.scripts import commit_with
from mesh.testing.fake_server import without_flags
from tests.support.backend import Backend
from tests.support.waiting import eventually

NAME = "test.numbers"
WORKER = Worker()


@WORKER.handles("filters.read", effect=False)
async def read(request: Request, store: Store, transaction: Effects) -> Body:
    """Say which database answers."""
    return {"database": store.database}


def filter_of(replica: Replica, bits: int = 4096) -> Filter:
    return Filter(f"filters:{replica.database}", bits)


async def have(replica: Replica, *numbers: str) -> None:
    """Let the filter of a replica have these numbers, and name it."""
    transaction = replica.transaction()
    transaction.shared.mark(filter_of(replica), numbers)
    transaction.set("filters:data", " ".join(numbers))
    assert await replica.commit(transaction)
    assert await replica.filters.put_in_row(NAME, filter_of(replica))


async def asked(replica: Replica, number: str) -> set[int]:
    """The databases that a gather for a number asks."""
    return {*await replica.gather("filters.read", {}, among=among(NAME, number))}


async def test_only_databases_that_may_have_it_are_asked(backend: Backend) -> None:
    """One of two has it; one without a filter may have anything, and one whose filter is gone, unless it is empty."""
    one, two, three, four = await backend(4, WORKER)
    await have(one, "7", "101")
    await have(two, "11", "101")
    assert await four.filters.put_in_row(NAME, filter_of(four))
    assert await asked(one, "7") == {one.database, three.database}
    transaction = four.transaction()
    transaction.set("filters:data", "x")
    assert await four.commit(transaction)
    assert await asked(one, "7") == {one.database, three.database, four.database}
    assert await asked(two, "101") == {one.database, two.database, three.database, four.database}
    assert {*await one.gather("filters.read", {})} == {each.database for each in (one, two, three, four)}
    assert {*await one.gather("filters.read", {}, among=Among("other", ((1, 2),)))} == {1, 2, 3, 4}


async def test_databases_that_may_have_one_of_several_are_asked(backend: Backend) -> None:
    """No bit of one number counts for another one."""
    one, two, three = await backend(3, WORKER)
    await have(one, "7", "101")
    await have(two, "11")
    await have(three, "13")
    found = await one.gather("filters.read", {}, among=among(NAME, "101", "11", "17"))
    assert {*found} == {one.database, two.database}


async def test_a_gather_that_asks_nobody_is_complete_at_once(backend: Backend) -> None:
    """No request is counted."""
    one, two = await backend(2, WORKER)
    await have(one, "7")
    await have(two, "11")
    before = await two.books()
    assert await two.gather("filters.read", {}, among=among(NAME, "13")) == {}
    assert await two.books() == before


async def test_a_filter_is_named_under_the_lease_only(backend: Backend) -> None:
    """A holder whose lease is over cannot name one in the row of its successor."""
    one = await backend.join(WORKER, class_="A")
    two = await backend.join(WORKER, class_="B")
    await have(two, "7")
    assert await asked(one, "11") == {one.database}
    row = f"mesh:replica:{two.database}"
    client = backend.redis()
    late = Filters(two._link, two.database, "1 a-former-holder")
    assert not await late.put_in_row(NAME, Filter("x", 8))
    assert await client.hget(row, f"filter:{NAME}") == f"shared:{filter_of(two).key} 4096"
    await client.aclose()


async def test_a_filter_that_somebody_has_replaced_keeps_nobody_from_being_asked(backend: Backend) -> None:
    """A key that was deleted, that has got other bits since, and that is no string of bits."""
    (one,) = await backend(1, WORKER)
    await have(one, "7")
    client = backend.redis()
    assert await asked(one, "11") == set()
    await client.delete(f"shared:{filter_of(one).key}")
    assert await asked(one, "11") == {one.database}
    transaction = one.transaction()
    transaction.shared.mark(filter_of(one), ["13"])
    assert await one.commit(transaction)
    assert await asked(one, "11") == {one.database}
    assert not await one.filters.is_valid(filter_of(one))
    await client.delete(f"shared:{filter_of(one).key}")
    await client.hset(f"shared:{filter_of(one).key}", "a", "b")
    assert await asked(one, "11") == {one.database}
    assert await one.filters.count_set_bits(filter_of(one)) == 0 and not await one.filters.is_valid(filter_of(one))
    await have(one, "13")
    await client.aclose()


async def test_what_a_row_names_can_be_read_and_taken_back(backend: Backend) -> None:
    """The holder reads and removes what its row names."""
    (one,) = await backend(1, WORKER)
    assert await one.filters.read_from_row(NAME) is None
    await have(one, *map(str, range(1000, 1020)))
    assert await one.filters.read_from_row(NAME) == filter_of(one)
    assert 30 < await one.filters.count_set_bits(filter_of(one)) <= 41
    assert await one.filters.put_in_row(NAME, None)
    assert await one.filters.read_from_row(NAME) is None
    assert await asked(one, "11") == {one.database}


async def test_a_renewal_leaves_the_filter_and_a_successor_begins_without(backend: Backend) -> None:
    """The grant writes the row anew."""
    one = await backend.join(WORKER, class_="A")
    two = await backend.join(WORKER, class_="B")
    await have(one, "7")
    await have(two, "7")
    client = backend.redis()
    one.announce()

    async def is_renewed() -> bool:
        return await client.hget(f"mesh:replica:{one.database}", "state") == "ready"

    await eventually(is_renewed)
    assert await asked(two, "13") == set()
    await backend.kill(0)
    three = await backend.join(WORKER, class_="A")
    assert three.database == one.database
    assert await asked(two, "13") == {three.database}
    await client.aclose()


def bits_of(numbers: Iterable[str], bits: int) -> set[int]:
    """Return the bits that a gather looks at for these numbers."""
    return {each % bits for pair in among(NAME, *numbers).pairs for each in pair}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10**60).map(str), unique=True, min_size=1, max_size=120), st.integers(1, 10**5))
def test_the_script_sets_the_bits_that_a_gather_looks_at(numbers: list[str], bits: int) -> None:
    """Python and Lua have the same hashes, for numbers of any length."""
    transaction = Effects(0, "replica-2", verbs=WORKER.verbs)
    transaction.shared.mark(Filter("x", bits), numbers)
    assert bits_after(transaction) == bits_of(numbers, bits)


def test_numbers_that_the_filter_has_for_certain_are_not_set_again() -> None:
    """Those below `below`. A number of more digits than a double can have is not below it."""
    transaction = Effects(0, "replica-2", verbs=WORKER.verbs)
    transaction.shared.mark(Filter("x", 4096, below=100), ["7", "99", "100", "101", f"1{0:020}7"])
    assert bits_after(transaction) == bits_of(["100", "101", "7"], 4096)
    assert Filter("x", 4096, below=100) == Filter("x", 4096), "a roster row does not have it"


@pytest.mark.parametrize("text", ["", "text", "-7", "1e3", "nan", "inf", "0x1f", " 7", "١٢"])
def test_what_is_no_number_is_refused(text: str) -> None:
    """Lua would read some of these as numbers without bits, and lose the bits of those beside them."""
    transaction = Effects(0, "replica-2", verbs=WORKER.verbs)
    with pytest.raises(ValueError, match="numbers of decimal digits"):
        transaction.shared.mark(Filter("x", 4096), ["13", text])


def bits_after(transaction: Effects) -> set[int]:
    """Commit a transaction to an empty server; return the bits that are set in the filter x."""
    fake = fakeredis.FakeRedis()
    fake.set("lease", "me")
    batch, _, longs, _ = transaction.wire()
    words = ("lease", "books", "committed", "me", 1000, 0, 0, "replica-2", 1, b"[%b]" % batch, *longs)
    assert fake.eval(without_flags(commit_with(WORKER.fragments).source), 3, *words) == b'["done"]'
    bits = fake.get("shared:x")
    return {8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte & (128 >> bit)}


@pytest.mark.parametrize("each", [lambda n: n, lambda n: 10**14 + n, lambda n: n * 2_147_483_659, lambda n: 10**40 + n])
def test_a_half_full_filter_is_wrong_about_few(each: object) -> None:
    """Two bits of sixteen for each number: of a hundred that it does not have, it may have two."""
    number = each if callable(each) else None
    assert number is not None
    there = bits_of((str(number(n)) for n in range(4000)), 16 * 4000)
    others = [bits_of([str(number(n))], 16 * 4000) for n in range(4000, 24_000)]
    assert sum(there.issuperset(each) for each in others) < 0.02 * len(others)
    assert Filter.size_for(4000) == 2 * 16 * 4000 and Filter.size_for(0) == 4096
