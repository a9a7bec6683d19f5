"""The note."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import MarkMissing, put, table


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    """Prose around a section, and other sections, stay as they are; putting twice is putting once."""
    note = tmp_path / "note.md"
    note.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nmiddle\n<!-- b -->\nkept\n<!-- /b -->\nafter\n")
    put("a", r"new \1 \n", note)
    once = note.read_text()
    put("a", r"new \1 \n", note)
    assert note.read_text() == once
    assert once == ("before\n<!-- a -->\n\nnew \\1 \\n\n\n<!-- /a -->\nmiddle\n<!-- b -->\nkept\n<!-- /b -->\nafter\n")


def test_a_section_without_a_place_is_an_error(tmp_path: Path) -> None:
    """Figures are never lost in silence."""
    note = tmp_path / "note.md"
    note.write_text("nothing here")
    with pytest.raises(MarkMissing):
        put("a", "new", note)


def test_a_table_escapes_its_own_border() -> None:
    """A bar in a cell does not become a column."""
    assert table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
