"""What each test of the core runs. It is measured once, and again for the tests that have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.support.mutants.places import Places

#: The tests that a mutant is tried with: all tests of the core.
ALL = "tests/mesh"

#: Records tests: {test: what `recorder` found}, for the arguments of pytest.
Record = Callable[[list[str]], dict[str, Any]]


class Reach:
    """The lines and scripts of the core that each test runs."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    @property
    def all(self) -> set[str]:
        """All tests."""
        return set(self._found)

    @property
    def passed(self) -> set[str]:
        """The tests that passed without a mutant."""
        return {test for test, facts in self._found.items() if facts["passed"]}

    def seconds(self, test: str) -> float:
        """How long a test takes."""
        return float(self._found[test]["seconds"])

    def tests(self, places: Places) -> set[str]:
        """Return the tests that run one of these lines."""
        return {test for test, facts in self._found.items() if any(_meets(facts, *place) for place in places.items())}

    def running(self, script: str) -> set[str]:
        """Return the tests that use a script, on whatever server."""
        return {test for test, facts in self._found.items() if script in facts["scripts"]}

    @property
    def measured(self) -> set[str]:
        """The tests that run scripts line by line."""
        return {test for test, facts in self._found.items() if any(path.endswith(".lua") for path in facts["lines"])}


def _meets(facts: dict[str, Any], path: str, lines: set[int] | None) -> bool:
    return path in facts["lines"] and (lines is None or not lines.isdisjoint(facts["lines"][path]))


def measured(root: Path, kept: Path, record: Record) -> Reach:
    """Return what the tests below `root` run; `kept` is the file with what earlier runs have measured.

    A change of the core or of what tests share makes everything be measured again.
    """
    known: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    files = sorted((root / ALL).rglob("test_*.py"))
    helpers = {
        file for file in (root / "tests").rglob("*.py") if not file.match("test_*") and not file.match("mutants/*")
    }
    shared = _digest(sorted({*(root / "mesh").rglob("*.*"), *helpers}))
    now = {file.relative_to(root).as_posix(): f"{shared} {_digest([file])}" for file in files}
    missing = [name for name, digest in now.items() if known.get(name, {}).get("digest") != digest]
    entries = {name: known[name] for name in now if name not in missing}
    if missing:
        entries |= {name: {"digest": now[name], "tests": {}} for name in missing}
        for test, facts in record(missing).items():
            entries[test.partition("::")[0]]["tests"][test] = facts
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(entries), "utf-8")
    return Reach({test: facts for entry in entries.values() for test, facts in entry["tests"].items()})


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(f"{file.name} ".encode() + file.read_bytes())
    return found.hexdigest()
