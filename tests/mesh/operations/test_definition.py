"""Definitions of operations: schemas of what is sent and answered, whatever the types are."""

from __future__ import annotations

from msgspec import Struct
from pydantic import BaseModel, computed_field

from mesh import Operation, Refused
from mesh.operations.definition import define


class Item(Struct):
    name: str
    sizes: tuple[int, str] = (0, "")


class Part(BaseModel):
    name: str


class Model(BaseModel):
    items: list[Part]
    name: str = ""


class Full(Refused, code="stock.full"):
    """There is no place left."""

    place: str


async def handler() -> None:
    """Put something into stock.

    The rest is not part of the summary.
    """


def test_a_definition_has_the_schemas_of_its_types() -> None:
    """A definition has schemas of a pydantic model, of a Struct, and of the errors of its service."""
    found = define(Operation("stock.put", Model, list[Item]), "stock", handler)
    assert (found["service"], found["summary"]) == ("stock", "Put something into stock.")
    assert found["request"]["properties"].keys() == {"items", "name"}
    assert found["reply"]["items"] == {"$ref": "#/$defs/Item"}
    assert found["errors"] == {
        "stock.full": {"detail": "There is no place left.", "facts": {"place": {"type": "string"}}}
    }


class Shelf(BaseModel):
    length: int

    @computed_field
    def places(self) -> int:
        return self.length // 2


class Short(Refused, code="shelf.short"):
    """The shelf is too short."""

    rest: Shelf


def test_what_a_type_computes_is_in_what_is_written_only() -> None:
    """A caller does not send it, and finds it in the reply and in the facts of an error."""
    found = define(Operation("shelf.put", Shelf, Shelf), "shelf", handler)
    assert found["request"]["properties"].keys() == {"length"}
    assert found["reply"]["properties"].keys() == {"length", "places"}
    assert found["errors"]["shelf.short"]["facts"]["rest"]["properties"].keys() == {"length", "places"}


def test_nothing_has_no_schema() -> None:
    found = define(Operation("stock.clear", None, None), "stock", handler)
    assert (found["request"], found["reply"]) == (None, {"type": "null"})
    assert define(Operation("other.clear", None, None), "other", handler)["errors"] == {}
