"""What each test runs: measured by the plugin, and kept as long as nothing has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.mutants.reach import Reach, measured
from tests.support.mutants.trial import Tree

ROOT = Path(__file__).parents[2]


def test_the_plugin_notes_lines_and_scripts() -> None:
    """A test of a script names the script and its parts; a test without one names the lines that it ran."""
    quota = "tests/mesh/quota/test_quota.py"
    some = ("a_lost_reply_does_not_take_a_second_slot", "looking_changes_nothing", "lost_scripts_are_loaded_again")
    found = Tree(ROOT).record(["tests/mesh/wire/test_backoff.py", *(f"{quota}::test_{name}" for name in some)])
    reach = Reach(found)
    (backoff,) = [test for test in found if "test_backoff" in test]
    assert found[backoff]["lines"]["mesh/wire/backoff.py"] and found[backoff]["scripts"] == []
    assert reach.passed == reach.all and 0 < reach.seconds(backoff) < 10
    script, part = "mesh/quota/reserve.lua", "mesh/quota/common.lua"
    assert set() < reach.tests({script: None}) <= reach.tests({part: None}) <= reach.measured
    assert backoff not in reach.running(part)
    over_a_server = [test for test in reach.running(script) if "[real]" in test]
    assert over_a_server and reach.measured.isdisjoint(over_a_server)


class Recorded:
    """Stands for the runs of pytest: one test for each file."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, files: list[str]) -> dict[str, Any]:
        self.files = files
        return {f"{file}::t": {"seconds": 1.0, "passed": True, "lines": {}, "scripts": []} for file in files}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("mesh/a.py", "tests/support/b.py", "tests/mesh/test_c.py", "tests/mesh/test_d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (None, []),
        ("tests/mesh/test_c.py", ["tests/mesh/test_c.py"]),
        ("mesh/a.py", ["tests/mesh/test_c.py", "tests/mesh/test_d.py"]),
        ("tests/support/b.py", ["tests/mesh/test_c.py", "tests/mesh/test_d.py"]),
    ],
)
def test_what_has_not_changed_is_not_measured_again(root: Path, changed: str | None, again: list[str]) -> None:
    """A test is measured again when it, the core or a helper has changed."""
    kept, record = root / ".mutants/reach.json", Recorded()
    assert measured(root, kept, Recorded()).all == {"tests/mesh/test_c.py::t", "tests/mesh/test_d.py::t"}
    if changed:
        (root / changed).write_text("x = 1")
    assert measured(root, kept, record).all == {"tests/mesh/test_c.py::t", "tests/mesh/test_d.py::t"}
    assert record.files == again


def test_a_test_file_that_is_gone_is_forgotten(root: Path) -> None:
    """Its tests are in no trial."""
    kept = root / ".mutants/reach.json"
    measured(root, kept, Recorded())
    (root / "tests/mesh/test_c.py").unlink()
    assert measured(root, kept, Recorded()).all == {"tests/mesh/test_d.py::t"}
