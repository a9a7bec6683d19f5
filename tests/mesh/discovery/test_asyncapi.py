"""The AsyncAPI document: valid by the official schema, and by the rules that a schema cannot express."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from msgspec import Struct
from pydantic import BaseModel, Field

from mesh import Operations, Query, Refused, Transaction
from mesh.discovery import make_document
from mesh.raw import Worker
from tests.support.greetings import greetings

SCHEMA = json.loads((Path(__file__).parents[2] / "support/asyncapi/3.0.0.json").read_text())


class Circle(Struct, tag="circle"):
    radius: float


class Square(Struct, tag="square"):
    side: float
    #: as a tuple it has another schema in draft 7
    corner: tuple[int, int] = (0, 0)


class Drawing(Struct):
    shapes: list[Circle | Square]
    #: a property with the name of a keyword
    discriminator: str = ""


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Pets(BaseModel):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]


class TooMany(Refused, code="shapes.too-many"):
    """There are too many shapes."""

    most: int


def shapes() -> Operations:
    table = Operations("shapes")

    @table.command
    async def draw(tx: Transaction, body: Drawing) -> Pets:
        """Draw something."""
        return Pets(pets=[])

    @table.query
    async def clashing(view: Query) -> Clashing.Drawing:
        return Clashing.Drawing()

    return table


class Clashing:
    """Another type with a name that is taken."""

    class Drawing(Struct):
        title: str = ""


def made(*workers: Worker) -> dict[str, Any]:
    """The document of these tables, as a mesh would write it."""
    whole = Worker()
    for worker in workers:
        whole.include(worker)
    known = {op: json.loads(text) for op, text in whole.definitions("1.2.3").items()}
    return make_document(known, title="mesh", version="1.2.3", classes="ABCD", database_count=16)


def raw() -> Worker:
    worker = Worker()
    for name in ("a name with spaces", "a/name/with/spaces", "a~name"):
        worker.handles(name)(None)  # type: ignore[arg-type]
    return worker


TABLES: dict[str, Worker] = {
    "structs and models": greetings.worker,
    "unions, tuples, names that clash": shapes().worker,
    "operations without types": raw(),
    "no operation": Worker(),
}


def references(part: Any) -> Iterator[str]:
    """Yield every `$ref` of a document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def resolved(whole: dict[str, Any], reference: str) -> Any:
    """What a reference stands for. Raises KeyError."""
    found: Any = whole
    assert reference.startswith("#/")
    for step in reference[2:].split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return resolved(whole, found["$ref"]) if isinstance(found, dict) and "$ref" in found else found


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    """The official schema of AsyncAPI 3.0."""
    return jsonschema.Draft7Validator(SCHEMA)


@pytest.mark.parametrize("table", TABLES)
def test_the_official_schema_accepts_the_document(validator: jsonschema.Draft7Validator, table: str) -> None:
    whole = made(TABLES[table])
    json.dumps(whole)
    assert [error.message for error in validator.iter_errors(whole)] == []


@pytest.mark.parametrize("table", TABLES)
def test_the_document_keeps_the_rules_between_its_parts(table: str) -> None:
    """References resolve, operations name messages of their channels, and channels of replies have no fixed address."""
    whole = made(TABLES[table])
    for reference in references(whole):
        resolved(whole, reference)
    for operation in whole["operations"].values():
        channel, reply = operation["channel"]["$ref"], operation["reply"]
        assert all(each["$ref"].startswith(f"{channel}/messages/") for each in operation["messages"])
        assert resolved(whole, reply["channel"]["$ref"])["address"] is None
        assert all(each["$ref"].startswith(f"{reply['channel']['$ref']}/messages/") for each in reply["messages"])
    for name, channel in whole["channels"].items():
        placed = {part.partition("}")[0] for part in (channel["address"] or "").split("{")[1:]}
        assert placed == channel.get("parameters", {}).keys(), name
    # Each schema is one of draft 7.
    for schema in whole["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def accepts(whole: dict[str, Any], message: str, part: str, value: Any) -> bool:
    schema = {**whole["components"]["messages"][message][part], "components": whole["components"]}
    return bool(jsonschema.Draft7Validator(schema).is_valid(value))


def test_the_schemas_say_what_the_types_say() -> None:
    whole = made(shapes().worker)
    square: dict[str, Any] = {"type": "square", "side": 1, "corner": [1, 2]}
    assert accepts(whole, "shapes.draw.request", "payload", {"shapes": [square, {"type": "circle", "radius": 2}]})
    for wrong in ({"shapes": [{**square, "corner": ["1", 2]}]}, {"shapes": [{"type": "line"}]}, {}, {"shapes": 1}):
        assert not accepts(whole, "shapes.draw.request", "payload", wrong)
    assert not accepts(whole, "shapes.draw.request", "payload", {"shapes": [], "discriminator": 1})
    assert accepts(whole, "shapes.draw.reply", "payload", {"pets": [{"kind": "cat"}]})
    assert not accepts(whole, "shapes.draw.reply", "payload", {"pets": [{"kind": "cow"}]})
    assert accepts(whole, "shapes.clashing.reply", "payload", {"title": "a"})
    assert not accepts(whole, "shapes.clashing.reply", "payload", {"title": 1})


def test_a_reply_is_one_of_its_messages() -> None:
    """The status of a reply says which message it is: an answer, an error of the service, or another failure."""
    whole = made(shapes().worker)
    fields = {"op": "shapes.draw", "request": "r-1", "from": "replica-1", "forwards": "0"}
    answers = whole["operations"]["shapes.draw"]["reply"]["messages"]
    names = [each["$ref"].rpartition("/")[2] for each in answers]
    for status, name in (
        ("ok", "shapes.draw.reply"),
        ("shapes.too-many", "shapes.too-many"),
        ("busy", "shapes.failure"),
    ):
        assert [each for each in names if accepts(whole, each, "headers", {**fields, "status": status})] == [name]
    assert not accepts(whole, "shapes.too-many", "payload", {"detail": "5 are too many"})
    assert accepts(whole, "shapes.too-many", "payload", {"detail": "5 are too many", "most": 4})


def test_each_operation_is_on_two_channels() -> None:
    """A request goes to any replica of a class, or to the holder of a database."""
    found = made(shapes().worker)["operations"]
    channels = {name: operation["channel"]["$ref"].rpartition("/")[2] for name, operation in found.items()}
    assert channels == {
        "shapes.draw": "class", "shapes.draw.database": "database",
        "shapes.clashing": "class", "shapes.clashing.database": "database",
    }  # fmt: skip


def test_a_component_has_a_name_of_its_own_that_links_can_hold() -> None:
    """Names of operations that differ only in other characters are numbered; an empty one has a name, too."""
    names = ["a b", "a/b", "a~b", "c", ""]
    found = make_document({name: {} for name in names}, title="t", version="1", classes="A", database_count=1)[
        "operations"
    ]
    assert {name for name in found if not name.endswith(".database")} == {"a_b", "a_b-2", "a_b-3", "c", "_"}
