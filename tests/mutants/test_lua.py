"""The changes that are made to a script."""

from __future__ import annotations

import pytest

from tests.support.mutants.lua import candidates


def changed(source: str) -> set[tuple[str, str]]:
    """Return (kind, changed source) of all mutants."""
    return {(each.kind, each.apply() or "") for each in candidates("a.lua", source)}


@pytest.mark.parametrize(
    ("source", "mutants"),
    [
        ("x = a == b", {("==", "x = a ~= b")}),
        ("x = a ~= b", {("~=", "x = a == b")}),
        ("x = a < b", {("<", "x = a <= b")}),
        ("x = a >= b", {(">=", "x = a > b")}),
        ("x = a and b", {("and", "x = a or b")}),
        ("x = not a", {("not", "x =  a")}),
        ("x = true", {("true", "x = false")}),
        ("x = a + b", {("+", "x = a - b")}),
        ("x = 9", {("number", "x = 10")}),
        ("redis.call('DEL', key)\nx = y", {("remove call", "\nx = y")}),
        ("  pcall(redis.call, 'DEL', key)\n", {("remove call", "\n")}),
        ("if a then return b end\n", {("remove return", "\n")}),
    ],
)
def test_each_kind_of_change(source: str, mutants: set[tuple[str, str]]) -> None:
    """A token becomes its counterpart, a number grows by one, a line without its own value goes."""
    assert changed(source) == mutants


@pytest.mark.parametrize(
    "source",
    [
        "#!lua flags=allow-oom\n-- 1 < 2 and 3\n",
        "--[[ 1 < 2\n == ]]\n",
        "x = '1 < 2'",
        'x = "a \\" < 1"',
        "x = KEYS[1] .. ARGV[2]",
        "x1 = order",
        "local x = redis.call('GET', key)",  # its result is used
        "redis.call('HSET',\n  key)",  # a part of a statement is no statement
    ],
)
def test_nothing_else_is_changed(source: str) -> None:
    """Comments, strings, names, and indices of arguments stay."""
    assert changed(source) == set()


def test_a_change_names_its_line() -> None:
    """Lines count from 1, also behind a comment of several lines."""
    assert [each.line for each in candidates("a.lua", "--[[ a\nb ]]\nx = 1\n")] == [3]
