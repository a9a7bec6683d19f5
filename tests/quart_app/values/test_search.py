"""Searching part by part: complete, each value once, bounded, whatever the databases answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import Busy, DeadlineExceeded, Replies
from mesh.raw import Among
from quart_app.values.answers import Responses
from quart_app.values.budget import Budget
from quart_app.values.finding import SharedGathers
from quart_app.values.pace import Pace
from quart_app.values.search import MOST_BLOCK_VALUES, Question, Result, Search
from quart_app.values.store import Part, with_prefix


class Databases:
    """Databases with records, which answer at most so many values at once. The `older` answer as earlier releases."""

    def __init__(self, records: Mapping[int, Mapping[int, str]], most: int, older: Collection[int] = ()) -> None:
        self._records = records
        self._older = older
        self._most = most
        self.gathers = 0
        self.clock_ms = 0

    def now_ms(self) -> int:
        return self.clock_ms

    async def gather(
        self, op: str, body: Mapping[str, Any], *, deadline_ms: int, decode: Callable[[str], Part], among: Among
    ) -> Replies[Part]:
        assert among.name == "values.primes.2"
        assert op == "values.find" and deadline_ms > 0
        self.gathers += 1
        self.clock_ms += 10
        most = min(self._most, body["limit"])
        assert body["as"] == "text"
        parts = {
            database: decode(json.dumps(self._part(records, body["after"], most, database in self._older)))
            for database, records in self._records.items()
        }
        replies = Replies(parts)
        replies.left_out = [8 + self.gathers]
        return replies

    @staticmethod
    def _part(records: Mapping[int, str], after: str, most: int, is_older: bool) -> dict[str, Any]:
        above = sorted(value for value in records if value > int(after or 0))
        part = above[:most]
        flat = [text for value in part for text in (str(value), records[value])]
        text = ";".join(f"{with_prefix(str(value))}={records[value].split(' ', 2)[2]}" for value in part)
        return {"until": str(part[-1]) if len(part) == most else "", "found": flat if is_older else text}


async def search(
    databases: Databases, most: int = 1000, most_bytes: int = 1 << 20, after: str = "", budget: int = 1 << 30
) -> Result:
    mesh: Any = databases
    responses = Responses(Budget(budget, "bytes", 1))
    return await Search(mesh, SharedGathers(), Pace(), responses, Question("2", after, most, most_bytes), 5000).run()


async def test_databases_that_a_part_could_not_ask_are_named() -> None:
    """A long answer is made of several gathers; each of them may lack other databases."""
    databases = Databases({1: {n: f"{n}-0 1 2^1" for n in range(1, 6)}}, most=3)
    found = await search(databases)
    assert (databases.gathers, found.left_out) == (2, [9, 10])


def shown(found: Result) -> list[int]:
    return [element["value"] for element in json.loads(b"".join(found.array.pieces("", "")))]


@given(
    st.dictionaries(st.integers(1, 3), st.sets(st.integers(1, 10**30), max_size=8), min_size=1),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sets(st.integers(1, 3)),
    st.sampled_from(["2^2 3", "2 2 3"]),
)
async def test_pages_are_complete_and_ascending_whatever_the_parts(
    values: dict[int, set[int]], part: int, most: int, older: set[int], factors: str
) -> None:
    """Each value once, wherever a database stops, and whatever its release and its way to write factors are."""
    records = {
        database: dict.fromkeys(found, f"{database}-0 99 {factors if database > 1 else '2 2 3'}")
        for database, found in values.items()
    }
    expected = sorted(set().union(*values.values()))
    all_of_them: list[int] = []
    after, more = "", True
    while more:
        found = await search(Databases(records, part, older), most, after=after)
        page = shown(found)
        assert len(page) <= most and found.last_value == (str(page[-1]) if page else "")
        all_of_them += page
        after, more = found.last_value, found.has_more
        assert more == (len(all_of_them) < len(expected))
    assert all_of_them == expected == sorted(all_of_them)


async def test_the_record_of_the_newer_request_counts() -> None:
    """While a value moves to another class, two databases have it. Only earlier releases tell the age of a record."""
    old, new = {6: "1700000000000-9 99 2"}, {6: "1700000000000-10 99 2 3"}
    for records in ({1: old, 2: new}, {1: new, 2: old}):
        (element,) = json.loads(b"".join((await search(Databases(records, 5, older=[1, 2]))).array.pieces("", "")))
        assert element == {"value": 6, "prime_factors": [2, 3]}


async def test_an_answer_is_bounded_in_bytes_but_has_one_value_at_least() -> None:
    """The rest is for the next page."""
    records = {1: {10**900 + n: "1-0 99 2^3000" for n in range(5)}}
    found = await search(Databases(records, 5), most_bytes=1000)
    assert shown(found) == [10**900] and found.has_more
    found = await search(Databases(records, 5), most_bytes=16_000)
    assert len(shown(found)) == 2 and found.has_more and found.array.size <= 16_000


async def test_values_with_exponents_stand_among_many_without() -> None:
    """Only values with exponents are added one by one."""
    records = {1: {n: "1-0 99 2^3 5" if n % 77 == 0 else "1-0 99 2 3" for n in range(1, 5 * MOST_BLOCK_VALUES)}}
    found = await search(Databases(records, 5000))
    for element in json.loads(b"".join(found.array.pieces("", ""))):
        assert element["prime_factors"] == ([2, 2, 2, 5] if element["value"] % 77 == 0 else [2, 3])
    assert shown(found) == [*range(1, 5 * MOST_BLOCK_VALUES)] and not found.has_more
    found = await search(Databases(records, 5000), most=3 * MOST_BLOCK_VALUES + 1)
    assert (
        shown(found) == [*range(1, 3 * MOST_BLOCK_VALUES + 2)]
        and found.has_more
        and found.last_value == str(3 * MOST_BLOCK_VALUES + 1)
    )


async def test_a_long_answer_needs_room_in_memory() -> None:
    """What fits in one part does not."""
    records = {1: dict.fromkeys(range(1, 50), "1-0 99 2")}
    mesh: Any = Databases(records, 100)
    busy = Responses(Budget(100, "bytes", 1))
    busy.budget.take(90)
    question = Question("2", "", 1000, 10_000)
    assert len(shown(await Search(mesh, SharedGathers(), Pace(), busy, question, 5000).run())) == 49
    mesh = Databases(records, 10)
    with pytest.raises(Busy):
        await Search(mesh, SharedGathers(), Pace(), busy, question, 5000).run()


async def test_a_search_ends_at_its_deadline() -> None:
    """Expired records do not prolong a search, however many there are."""
    records = {1: dict.fromkeys(range(1, 5000), "1-0 99 2")}
    with pytest.raises(DeadlineExceeded, match="limit"):
        await search(Databases(records, 1), most=4999)
