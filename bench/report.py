"""Writes docs/benchmarks.md: replaces the text between the marks of a section and leaves the rest alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

NOTE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
PLOTS = NOTE.parent / "benchmarks"


class MarkMissing(LookupError):
    """The page has no marks for a section."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def put(section: str, content: str, path: Path = NOTE) -> None:
    """Replace the text between `<!-- section -->` and `<!-- /section -->`. Raises MarkMissing."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    text = path.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    changed, count = pattern.subn(lambda _: f"{begin}\n\n{content}\n\n{end}", text)
    if not count:
        raise MarkMissing(f"{path.name} has no {begin} … {end}")
    path.write_text(changed)
