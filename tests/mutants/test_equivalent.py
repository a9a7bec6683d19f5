"""The list of mutants that nothing can notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutants import equivalent
from tests.support.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]


def test_each_entry_is_a_line_of_today() -> None:
    """An entry whose line has changed or gone is removed from the list."""
    gone = [
        (path, before)
        for path, before, _ in equivalent.EQUIVALENT
        if not (ROOT / path).is_file() or before not in map(str.strip, (ROOT / path).read_text("utf-8").splitlines())
    ]
    assert gone == []


def test_a_mutant_has_the_reason_of_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason belongs to one file and one change; the indentation does not matter."""
    monkeypatch.setitem(equivalent.EQUIVALENT, ("a.py", "x = 1", "x = 2"), "nobody reads it")
    assert (
        equivalent.reason(Mutant("a.py", 2, "number", "if y:\n    x = 1\n", "if y:\n    x = 2\n")) == "nobody reads it"
    )
    assert equivalent.reason(Mutant("a.py", 2, "number", "x = 1\n", "x = 3\n")) is None
    assert equivalent.reason(Mutant("b.py", 2, "number", "x = 1\n", "x = 2\n")) is None


@pytest.mark.parametrize(
    ("before", "after", "is_named"),
    [
        ("MOST = 4000", "MOST = 3999", True),
        ("local MOST_NAMED = 256", "local MOST_NAMED = 257", True),
        ("DRAIN_HOLDS_MS = 60_000", "DRAIN_HOLDS_MS = 60001", True),
        ("MOST = 16", "MOST = 15", False),
        ("most = 4000", "most = 3999", False),
        ("MOST = 4000 if x else 1", "MOST = 4001 if x else 1", False),
    ],
)
def test_the_size_of_a_large_bound_is_no_promise(before: str, after: str, is_named: bool) -> None:
    """A test meets a bound under its name. Small ones count: one more may be twice as many."""
    assert (equivalent.reason(Mutant("a.py", 1, "number", before, after)) is not None) == is_named
