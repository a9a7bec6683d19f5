"""What a request to /values may be, and what it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from quart_app.values.models import ItemsReader
from quart_app.values.settings import ValuesSettings

ADAPTER = ItemsReader(ValuesSettings(max_digits=30, max_items=3, max_ttl_s=1000))


def item(**fields: Any) -> dict[str, Any]:
    return {"value": 144, "ttl": 300, "cls": "A", **fields}


def read(items: Any) -> list[tuple[int, int, str]]:
    return [(int(element.value), element.ttl, element.cls) for element in ADAPTER.validate_python(items, strict=True)]


def test_the_tasks_example_is_read() -> None:
    """Items are read in their order; an empty list is a request, too."""
    assert read([item(), item(value=120, ttl=600, cls="C")]) == [(144, 300, "A"), (120, 600, "C")]
    assert read([]) == []


def test_a_decimal_string_stands_for_its_number() -> None:
    """Some readers of JSON round large integers."""
    assert read([item(value=str(10**29))]) == [(10**29, 300, "A")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 0}, {"value": -7}, {"value": 1.5}, {"value": 1.0}, {"value": True}, {"value": None}, {"value": [7]},
        {"value": 10**30}, {"value": "9" * 31}, {"value": "-7"}, {"value": "1e3"}, {"value": " 7"}, {"value": ""},
        {"value": "٣"}, {"value": "9" * 5000}, {"ttl": 0}, {"ttl": -1}, {"ttl": 1001}, {"ttl": 1.5}, {"ttl": False},
        {"cls": "E"}, {"cls": "a"}, {"cls": ""}, {"cls": "AB"}, {"cls": None}, {"cls": 1}, {"more": 1},
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused(wrong: dict[str, Any]) -> None:
    """Numbers are exact, classes are four, and nothing is ignored silently."""
    with pytest.raises(ValidationError):
        read([item(**wrong)])


@pytest.mark.parametrize("missing", ["value", "ttl", "cls"])
def test_all_three_fields_are_needed(missing: str) -> None:
    """There are no defaults."""
    with pytest.raises(ValidationError):
        read([{name: value for name, value in item().items() if name != missing}])


@pytest.mark.parametrize("wrong", [{}, "x", 7, None, [[]], [None], [item()] * 4])
def test_what_is_no_list_of_items_is_refused(wrong: Any) -> None:
    """A list of too many items is refused, too."""
    with pytest.raises(ValidationError):
        read(wrong)


@pytest.mark.parametrize("digits", [1000, 4000])
def test_a_number_beyond_a_large_limit_is_refused_as_any_other(digits: int) -> None:
    """A wrong number is never an error of ours, however long it is."""
    adapter = ItemsReader(ValuesSettings(max_digits=digits))
    for value in (10**digits, -(10**digits)):
        with pytest.raises(ValidationError):
            adapter.validate_python([item(value=value)], strict=True)
    with pytest.raises(ValidationError):
        adapter.validate_python([item(ttl=10**digits)], strict=True)
    assert adapter.validate_python([item(value=10**digits - 1)], strict=True)


def test_the_limits_are_the_settings() -> None:
    """The settings give the longest value, the longest time and the most items."""
    assert read([item(value=10**30 - 1, ttl=1000)] * 3) == [(10**30 - 1, 1000, "A")] * 3


def test_plain_items_are_read_from_their_text() -> None:
    """If one item is not plain, all are read the thorough way, with the same result."""
    for value in (1, 2**63, 2**64 - 1, 2**64, 10**30 - 1):
        for ttl in (1, 1000):
            for other in (item(), item(value="5"), item(ttl="7")):
                items = [item(value=value, ttl=ttl), other]
                quick = ADAPTER.decode(json.dumps(items).encode())
                assert (quick is not None) == (other == item())
                for found in (quick, ADAPTER.validate_python(items, strict=True)):
                    if found is not None:
                        assert [(one.value, one.ttl, one.cls) for one in found] == [
                            (str(int(one["value"])), int(one["ttl"]), "A") for one in items
                        ]


@pytest.mark.parametrize(
    "text",
    [
        '[{"value": 1, "value": 2, "ttl": 5, "cls": "A"}]', '[{"value": 1e3, "ttl": 5, "cls": "A"}]',
        '[{"value": -0, "ttl": 5, "cls": "A"}]', '[{"value": 01, "ttl": 5, "cls": "A"}]',
        '[{"value": 0, "ttl": 5, "cls": "A"}]',
        '[{"value": 7, "ttl": 5, "cls": "\\u0041"}]', '[{"value": "٣", "ttl": 5, "cls": "A"}]', "[[]]", "{}", "x",
        '[{"value": 7, "ttl": 1001, "cls": "A"}]', '[{"value": 1%s, "ttl": 5, "cls": "A"}]' % ("0" * 30),
        '[{"value": true, "ttl": 5, "cls": "A"}]', '[{"value": [1], "ttl": 5, "cls": "A"}]',
        '[{"value": 7, "ttl": 5, "cls": "A"}%s]' % (', {"value": 7, "ttl": 5, "cls": "A"}' * 3),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_pydantic(text: str) -> None:
    """An item with a name twice is not plain: the decoder would keep the last one."""
    assert ADAPTER.decode(text.encode()) is None


def test_the_digits_of_a_decimal_string_begin_with_none_of_its_zeros() -> None:
    """One value has one text, by which records are found."""
    assert read([item(value="0007")]) == [(7, 300, "A")]
    assert ADAPTER.validate_python([item(value="0007")])[0].value == "7"
