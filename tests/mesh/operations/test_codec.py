"""Values of a type as JSON and as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import pytest
from msgspec import Struct
from pydantic import BaseModel

from mesh import UsageError
from mesh.operations.codec import DECODE_ERRORS, Codec, NotOfType, StoredCodec, field_names_of, is_object_type


class Item(Struct):
    """A part of the bodies below."""

    name: str


class AsStruct(Struct):
    """One body in three ways."""

    items: list[Item]


@dataclass
class AsDataclass:
    """One body in three ways."""

    items: list[Item] = field(default_factory=list)


class ModelItem(BaseModel):
    """A part of the body below."""

    name: str


class AsModel(BaseModel):
    """One body in three ways."""

    items: list[ModelItem]


class AsTypedDict(TypedDict):
    """One body in three ways, and a fourth."""

    items: list[Item]


@pytest.mark.parametrize("kind", [AsStruct, AsDataclass, AsModel, AsTypedDict])
def test_the_fields_of_a_body(kind: Any) -> None:
    """Every type whose values are objects says which fields these have."""
    assert field_names_of(kind) == {"items"}


@pytest.mark.parametrize("kind", [dict, dict[str, int]])
def test_a_plain_dict_has_no_fields_that_are_known(kind: Any) -> None:
    """A plain dict may hold anything."""
    assert field_names_of(kind) == frozenset()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (AsStruct, AsStruct([Item("a")])),
        (AsDataclass, AsDataclass([Item("a")])),
        (AsModel, AsModel(items=[ModelItem(name="a")])),
        (list[AsModel], [AsModel(items=[])]),
        (dict[str, int], {"a": 1}),
        (int | None, None),
        (type(None), None),
    ],
)
def test_a_value_is_the_same_after_it_was_written_and_read(kind: Any, value: Any) -> None:
    """This holds for Structs, dataclasses, pydantic models and containers of them."""
    codec: Codec[Any] = Codec(kind)
    assert codec.decode(codec.encode(value).decode()) == value


@pytest.mark.parametrize("kind", [AsStruct, AsDataclass, AsModel])
def test_a_wrong_text_says_where_it_is_wrong(kind: Any) -> None:
    """The place is given in one notation, whatever type reads the text."""
    codec: Codec[Any] = Codec(kind)
    with pytest.raises(DECODE_ERRORS) as caught:
        codec.decode('{"items":[{"name":"a"},{"name":7}]}')
    assert codec.explain(caught.value).path == "$.items[1].name"
    with pytest.raises(DECODE_ERRORS) as caught:
        codec.decode("{")
    assert codec.explain(caught.value).path == ""


def test_a_type_that_is_no_json_is_refused_at_once() -> None:
    """The definition of the operation raises an error that says what to write instead."""
    with pytest.raises(UsageError, match="write a msgspec Struct, a dataclass, a pydantic model"):
        Codec(NotOfType)


def test_a_body_is_an_object_with_names() -> None:
    """A list or a number has no room for a second field."""
    assert all(map(is_object_type, (AsStruct, AsDataclass, AsModel, dict[str, int])))
    assert not any(map(is_object_type, (list[int], int, str)))


def test_text_and_integers_are_stored_as_they_are_and_all_else_as_json() -> None:
    """People read them, and INCRBY adds to them."""
    assert StoredCodec(str).encode("7") == StoredCodec(int).encode(7) == "7"  # type: ignore[misc]
    assert (StoredCodec(float).encode(1.5), StoredCodec(bool).encode(True), StoredCodec(Item).encode(Item("a"))) == (
        "1.5",
        "true",
        '{"name":"a"}',
    )
    assert StoredCodec(int).decode("-12") == -12


@pytest.mark.parametrize(("kind", "value"), [(int, "7"), (int, True), (str, 7), (float, "x"), (Item, {"name": "a"})])
def test_a_value_of_another_type_is_not_stored(kind: Any, value: Any) -> None:
    """The reader of another replica would stumble over it."""
    with pytest.raises(UsageError, match="expected"):
        StoredCodec(kind).encode(value)


@pytest.mark.parametrize(("kind", "text"), [(int, "x"), (int, "1_0"), (int, " 1"), (Item, "7")])
def test_a_stored_text_of_another_type_is_not_read(kind: Any, text: str) -> None:
    """A stored text of another type is an error."""
    with pytest.raises(NotOfType):
        StoredCodec(kind).decode(text)
