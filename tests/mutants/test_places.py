"""Which lines have the effect of a changed one."""

from __future__ import annotations

import pytest

from tests.support.mutants.places import Places, places

A = """\
MOST = 3
MORE = MOST + 1

@cached
def f(a, b=2):
    if a < MOST:
        return a + \\
            1
    try:
        g()
    except KeyError:
        pass
    return b

class C:
    x: int = 1

    def y(self):
        return MORE
"""
B = """\
from mesh.a import C, MOST

def g(c: C):
    x = 1
    return c.x

def h():
    return MOST
"""


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        (6, {6}),
        (8, {7, 8}),
        (11, {9, 11}),
        (13, {13}),
        (4, set(range(6, 14))),
        (5, set(range(6, 14))),
    ],
    ids=["head", "two lines", "except", "return", "decorator", "default"],
)
def test_a_line_of_a_function_is_its_statement(line: int, lines: set[int]) -> None:
    """It comes without the statements inside; the head of a function stands for the whole of it."""
    assert places("mesh/a.py", line, {"mesh/a.py": A, "mesh/b.py": B}) == {"mesh/a.py": lines}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (1, {"mesh/a.py": {6, 19}, "mesh/b.py": {8}}),
        (2, {"mesh/a.py": {19}}),
        (16, {"mesh/b.py": {5}}),
        (15, {"mesh/a.py": None}),
    ],
    ids=["constant", "constant of a constant", "field", "class"],
)
def test_a_line_that_runs_at_import_is_where_its_name_is_used(line: int, found: Places) -> None:
    """A constant is used under its name, directly or by another constant, a field behind a dot or as an argument."""
    assert places("mesh/a.py", line, {"mesh/a.py": A, "mesh/b.py": B}) == found
