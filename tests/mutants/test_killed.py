"""The mutants that an earlier run has killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutants.killed import Killed
from tests.support.mutants.mutant import Mutant

MUTANT = Mutant("mesh/a.py", 1, "number", "x = 1\n", "x = 2\n")
TEST = "tests/test_a.py::test_x"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("")
    return tmp_path


def kept(root: Path) -> Killed:
    return Killed(root, root / ".mutants" / "killed.json")


def test_the_next_run_knows_what_was_killed(root: Path) -> None:
    """It names the test; a mutant that nobody killed has none."""
    kept(root).add(MUTANT, TEST)
    assert kept(root).find(MUTANT) == TEST
    assert kept(root).find(Mutant("mesh/a.py", 1, "number", "x = 1\n", "x = 3\n")) is None
    assert kept(root).find(Mutant("mesh/b.py", 1, "number", "x = 1\n", "x = 2\n")) is None


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_test_that_has_changed_must_kill_again(root: Path, is_gone: bool) -> None:
    """What the test of today notices is not known."""
    kept(root).add(MUTANT, TEST)
    (root / "tests/test_a.py").unlink()
    if not is_gone:
        (root / "tests/test_a.py").write_text("x = 1")
    assert kept(root).find(MUTANT) is None
