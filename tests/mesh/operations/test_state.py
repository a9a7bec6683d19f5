"""Typed names of what is stored."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import Operations, UsageError

state = Operations("state")


def test_a_key_has_a_default_and_a_field_may_be_absent() -> None:
    """Readers of a key need no check."""
    assert state.value("total", int, 5).read(None) == 5
    assert state.value("name", str).read(None) is None
    assert state.hash("seen", str, int)["a"].read("7") == 7
    assert state.values("stored", int, str)[7].read(None) is None
    assert (str(state.hash("seen", str, int)["a"]), str(state.values("stored", int, str)[7])) == (
        "state:seen a",
        "state:stored:7",
    )


def test_readers_do_not_share_a_default_that_they_can_change() -> None:
    """A list as a default is a new list each time."""
    names: Any = state.value("names", list[str], [])
    names.read(None).append("x")
    assert names.read(None) == []


def test_what_is_stored_otherwise_is_named() -> None:
    """The message has the key."""
    with pytest.raises(ValueError, match="state:total holds something else: expected an integer, got 'x'"):
        state.value("total", int, 5).read("x")


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: state.hash("seen", str, int)[7], "a field of state:seen is named by str, not by 7"),
        (lambda: state.values("stored", int, str)["7"], "a value of state:stored is named by int, not by '7'"),
        (lambda: state.hash("by", float, int), "named by str or int, not by float"),  # type: ignore[type-var]
        (lambda: state.value("seen", int), "state:seen is a hash of int, and cannot be a value of int, too"),
        (lambda: state.value("a b", int), "named by text without spaces"),
        (lambda: Operations("a b"), "operations have a name like"),
        (lambda: state.set("many", int).encode("x"), "a member of state:many: expected int, got str"),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_told_at_once(mistake: Any, says: str) -> None:
    """Each says what to write instead."""
    state.hash("seen", str, int)
    with pytest.raises(UsageError, match=says):
        mistake()
