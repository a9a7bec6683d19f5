"""The random sample: what it draws from, and that a seed repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutants import lua
from tests.support.mutants.mutant import Candidate, Mutant
from tests.support.mutants.sample import candidates, sample

SCRIPT = "".join(f"local x{n} = {n}\n" for n in range(50))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mesh" / "testing").mkdir(parents=True)
    (tmp_path / "mesh" / "a.lua").write_text(SCRIPT)
    return tmp_path


def drawn(root: Path, number: int, seed: int) -> list[Mutant]:
    return sample(lua.candidates("mesh/a.lua", SCRIPT), root, number, seed)


def test_a_seed_repeats_its_sample(root: Path) -> None:
    """One seed gives one sample, another seed another."""
    assert drawn(root, 10, seed=1) == drawn(root, 10, seed=1)
    assert drawn(root, 10, seed=1) != drawn(root, 10, seed=2)


def test_each_line_is_drawn_once(root: Path) -> None:
    """No line comes twice, and a sample that is larger than the core is all of it."""
    assert {each.line for each in drawn(root, 10, seed=1)} < set(range(1, 51))
    assert sorted(each.line for each in drawn(root, 1000, seed=1)) == list(range(1, 51))


def test_a_larger_sample_begins_with_the_smaller_one(root: Path) -> None:
    """A run that stopped after ten mutants tried the same ones."""
    assert drawn(root, 30, seed=1)[:10] == drawn(root, 10, seed=1)


def test_a_changed_line_leaves_the_others_in_the_sample(root: Path) -> None:
    """After a correction the other mutants are tried again, although their lines have moved."""
    before = [each.changed for each in drawn(root, 20, seed=1)]
    changed = "-- a comment\n" + SCRIPT.replace("local x7 = 7\n", "local y = x7 + 7\n")
    (root / "mesh" / "a.lua").write_text(changed)
    after = [each.changed for each in sample(lua.candidates("mesh/a.lua", changed), root, 20, seed=1)]
    assert len(set(before) & set(after)) >= 19


def test_what_changes_nothing_is_replaced(root: Path) -> None:
    """A candidate without a change takes no place in the sample."""
    idle = [Candidate("mesh/a.lua", 1, "idle", lambda: None), Candidate("mesh/a.lua", 2, "idle", lambda: SCRIPT)]
    real = Candidate("mesh/a.lua", 3, "real", lambda: SCRIPT + "--")
    assert [each.kind for each in sample([*idle, real], root, 1, seed=1)] == ["real"]


def test_only_the_core_is_changed(root: Path) -> None:
    """Scripts of the core, but not what is there for tests, nor lines that tests cannot depend on."""
    (root / "mesh" / "testing" / "b.py").write_text("x = 1\n")
    (root / "mesh" / "c.py").write_text("@dataclass(frozen=True)\nclass C: ...\nx = 1\n")
    (root / "mesh" / "note.txt").write_text("1")
    found = {(each.path, each.line) for each in candidates(root)}
    assert {path for path, _ in found} == {"mesh/a.lua", "mesh/c.py"}
    assert ("mesh/c.py", 3) in found and ("mesh/c.py", 1) not in found
    assert {each.path for each in candidates(root, "mesh/c")} == {"mesh/c.py"}
