"""A mutant: one file of the core with one small change that a test should notice."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A change that can be made to one line of a file."""

    #: Relative to the root of the repository.
    path: str
    #: The number of the line, from 1.
    line: int
    #: What is changed, for example "Lt_LtE" or "number".
    kind: str
    #: Returns the whole file with the change, or None where nothing changes.
    apply: Callable[[], str | None]


@dataclass(frozen=True)
class Mutant:
    """A file before and after one change."""

    path: str
    line: int
    kind: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The change as a unified diff without context."""
        before, after = self.before.splitlines(), self.after.splitlines()
        return "\n".join(difflib.unified_diff(before, after, self.path, self.path, lineterm="", n=0))

    @property
    def changed(self) -> tuple[str, str]:
        """The lines that differ, before and after, without their indentation."""
        lines = self.diff.splitlines()[2:]
        removed, added = ("\n".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in ("-", "+"))
        return removed.strip(), added.strip()
