"""Limits as they are declared, and as they travel."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict
from uuid import UUID

import pytest
from msgspec import Struct
from pydantic import BaseModel

from mesh import InvalidBody, Limit, Operation, Operations, Query, Tick, Transaction, UsageError

MINUTE = timedelta(minutes=1)


class Colour(enum.Enum):
    RED = "red"


class Note(Struct):
    name: str
    number: int = 0
    colour: Colour = Colour.RED
    id: UUID = UUID(int=1)
    none: str | None = None


@dataclass
class Plain:
    name: str


class Model(BaseModel):
    name: str


class Typed(TypedDict, total=False):
    name: str


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (Limit(concurrency=1), "lane 1 notes.put:"),
        (Limit(by="name", concurrency=3), "lane 3 notes.put:ann smith"),
        (Limit(by="number", concurrency=1), "lane 1 notes.put:7"),
        (Limit(by="colour", concurrency=1), "lane 1 notes.put:red"),
        (Limit(by="id", concurrency=1), "lane 1 notes.put:00000000-0000-0000-0000-000000000001"),
        (Limit(by="none", concurrency=1), "lane 1 notes.put:null"),
        (Limit(by="name", rate=10, per=MINUTE), "rate 6000000 10 delay notes.put:ann smith"),
        (Limit(rate=3, per=timedelta(seconds=1), burst=1, when="refuse"), "rate 333334 1 refuse notes.put:"),
    ],
)
def test_a_limit_travels_as_text(limit: Limit, words: str) -> None:
    assert limit.words("notes.put", Note("ann smith", 7)) == words


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (Limit(concurrency=1), "1 at once"),
        (Limit(by="name", concurrency=3), "3 at once for each name"),
        (Limit(by="name", rate=10, per=MINUTE), "10 in 60 s for each name"),
        (Limit(rate=3, per=timedelta(milliseconds=500), burst=1, when="refuse"),
         "3 in 0.5 s, 1 of them at once, others are refused"),
    ],
)  # fmt: skip
def test_people_read_a_limit(limit: Limit, sentence: str) -> None:
    """`mesh ops` and the live page show a limit as a sentence."""
    assert str(limit) == sentence


@pytest.mark.parametrize("body", [Plain("ann"), Model(name="ann"), Typed(name="ann")])
def test_bodies_of_every_kind_have_fields(body: Any) -> None:
    kind = Typed if isinstance(body, dict) else type(body)
    operation: Operation[Any, None] = Operation("notes.put", kind, None, limit=Limit(by="name", concurrency=1))
    assert operation.limit_of(body) == "lane 1 notes.put:ann"


def test_a_field_that_is_left_out_is_a_value_of_its_own() -> None:
    assert Limit(by="name", concurrency=1).words("notes.put", {}) == "lane 1 notes.put:null"


def test_a_value_of_a_hundred_characters_names_itself() -> None:
    """A longer one does not: the names of lanes stay short."""
    limit = Limit(by="name", concurrency=1)
    assert limit.words("notes.write", {"name": "a" * 100}) == "lane 1 notes.write:" + "a" * 100
    assert limit.words("notes.write", {"name": "a" * 101}).startswith("lane 1 notes.write:" + "a" * 100 + "…")


def test_a_long_value_is_named_by_its_beginning_and_its_hash() -> None:
    limit = Limit(by="name", concurrency=1)
    one, two = (limit.words("notes.put", Note("x" * 10_000 + end)) for end in "ab")
    assert one != two
    assert len(one) < 200


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": 5, "concurrency": 1},
        {"concurrency": 1, "rate": 1, "per": MINUTE},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": True},
        {"concurrency": 1, "per": MINUTE},
        {"concurrency": 1, "burst": 2},
        {"concurrency": 1, "when": "refuse"},
        {"rate": 1},
        {"rate": 1, "per": 60},
        {"rate": 1, "per": timedelta(0)},
        {"rate": 1, "per": timedelta(days=1000)},
        {"rate": -1, "per": MINUTE},
        {"rate": 1, "per": MINUTE, "burst": 0},
        {"rate": 1, "per": MINUTE, "when": "drop"},
    ],
)
def test_mistakes_say_what_to_write(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Limit"):
        Limit(**options)


def endless() -> list[Any]:
    """Return a list that contains itself."""
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "value", [object(), endless(), [10**5000], ["\udcff"]], ids=["object", "endless", "int", "text"]
)
def test_a_value_that_is_no_json_is_an_invalid_body(value: object) -> None:
    """The request is refused where it is sent."""
    with pytest.raises(InvalidBody, match="the field name cannot be the value of a limit"):
        Limit(by="name", concurrency=1).words("notes.put", {"name": value})


class TestRegistration:
    """A limit is checked where the operation is defined."""

    def test_a_field_that_the_body_does_not_have(self) -> None:
        table = Operations("notes")
        with pytest.raises(UsageError, match=r"notes.put: Limit\(by='nam'\) names no field .* colour, id, name"):

            @table.command(limit=Limit(by="nam", concurrency=1))
            async def put(tx: Transaction, body: Note) -> None: ...

    def test_a_body_without_fields(self) -> None:
        table = Operations("notes")
        with pytest.raises(UsageError, match="no fields that are known"):

            @table.command(limit=Limit(by="name", concurrency=1))
            async def put(tx: Transaction) -> None: ...

        with pytest.raises(UsageError, match="no fields that are known"):

            @table.command(name="other", limit=Limit(by="name", concurrency=1))
            async def other(tx: Transaction, body: dict[str, str]) -> None: ...

    def test_what_is_no_limit(self) -> None:
        table = Operations("notes")
        with pytest.raises(UsageError, match=r"takes a Limit\(\.\.\.\)"):

            @table.command(limit=5)  # type: ignore[call-overload, untyped-decorator]
            async def put(tx: Transaction, body: Note) -> None: ...

    def test_a_query_has_none(self) -> None:
        table = Operations("notes")
        read = Operation("notes.read", Note, int, limit=Limit(concurrency=1))
        with pytest.raises(UsageError, match="only a command can have a limit"):

            @table.implements(read)
            async def handler(view: Query, body: Note) -> int:
                return 1

    def test_what_runs_by_itself_may_have_one(self) -> None:
        table = Operations("notes")

        @table.every("0 4 * * *", each=True, limit=Limit(concurrency=1))
        async def clean(tx: Transaction, tick: Tick) -> None: ...

        assert clean.limit_of(Tick(0, 0)) == "lane 1 notes.clean:"
