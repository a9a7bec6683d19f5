"""Trials of mutants in a small tree: one that a test kills, one that survives, and runs that say nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mutants.mutant import Mutant
from tests.support.mutants.report import share, text
from tests.support.mutants.trial import Outcome, Tree, Verdict, copy_of

SOURCE = "def is_adult(age):\n    return age >= 18\n"
TEST = """\
from mesh.age import is_adult

import pytest

@pytest.mark.parametrize("age", [3], ids=["a child"])
def test_others(age):
    assert not is_adult(age)

def test_the_birthday():
    assert is_adult(18)
"""

TESTS = ["tests/test_age.py::test_others[a child]", "tests/test_age.py::test_the_birthday"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one module and its tests."""
    for name, content in {
        "mesh/age.py": SOURCE,
        "tests/test_age.py": TEST,
        ".gitignore": "secret\n",
        "secret": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


@pytest.fixture
def tree(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """A copy of the project; pytest starts faster there without the plugins of this repository."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    with copy_of(project) as copy:
        yield Tree(copy.root, limits=())


def mutant(new: str, old: str = ">= 18") -> Mutant:
    return Mutant("mesh/age.py", 2, "number", SOURCE, SOURCE.replace(old, new))


def tried(tree: Tree, new: str, old: str = ">= 18", timeout: float = 60, further: tuple[str, ...] = ()) -> Verdict:
    return tree.try_mutant(mutant(new, old), [[*further, *TESTS]], timeout)


def test_a_mutant_that_a_test_notices_is_killed(tree: Tree) -> None:
    """The verdict names the test, and the copy is as before."""
    verdict = tried(tree, "> 18")
    assert (verdict.outcome, verdict.by) == (Outcome.KILLED, "tests/test_age.py::test_the_birthday")
    assert (tree.root / "mesh/age.py").read_text() == SOURCE


def test_the_name_of_a_test_may_have_spaces(tree: Tree) -> None:
    """The test runs again by its whole name."""
    verdict = tried(tree, ">= 2")
    assert (verdict.outcome, verdict.by) == (Outcome.KILLED, "tests/test_age.py::test_others[a child]")


def test_a_mutant_that_no_test_notices_survives(tree: Tree) -> None:
    """Nobody tests the age of 17."""
    assert tried(tree, ">= 17").outcome is Outcome.SURVIVED


def test_a_module_that_cannot_be_imported_is_killed(tree: Tree) -> None:
    """Pytest then collects no test at all."""
    verdict = tried(tree, "raise ValueError\ndef", "def")
    assert (verdict.outcome, verdict.by) == (Outcome.KILLED, "tests/test_age.py")


def test_a_hang_ends_after_the_timeout(tree: Tree) -> None:
    """The run is ended, and the next one finds the copy as before."""
    verdict = tried(tree, "while True: pass", "return age >= 18", timeout=5)
    assert verdict.outcome is Outcome.TIMED_OUT
    assert (tree.root / "mesh/age.py").read_text() == SOURCE


def test_a_test_that_fails_anyway_does_not_count(tree: Tree) -> None:
    """A test that fails without the mutant is noted and left out; the next test decides."""
    broken = tree.root / "tests/test_a.py"
    broken.write_text("def test_broken():\n    assert False\n")
    further = ("tests/test_a.py::test_broken",)
    assert tried(tree, "> 18", further=further).by == "tests/test_age.py::test_the_birthday"
    assert tree.broken == ["tests/test_a.py::test_broken"]
    assert tried(tree, ">= 17", further=further).outcome is Outcome.SURVIVED


def test_a_test_that_fails_by_chance_does_not_count(tree: Tree) -> None:
    """The test fails once, and not again with the same mutant."""
    (tree.root / "tests/test_a.py").write_text(
        """import pathlib

def test_by_chance():
    mark = pathlib.Path(__file__).with_name("mark")
    is_first = not mark.exists()
    mark.touch()
    assert not is_first
"""
    )
    assert tried(tree, ">= 17", further=("tests/test_a.py::test_by_chance",)).outcome is Outcome.SURVIVED
    assert tree.broken == []


def test_tests_that_cannot_be_imported_say_nothing(tree: Tree) -> None:
    """A tree that is broken without a mutant kills none."""
    (tree.root / "tests/conftest.py").write_text("raise ValueError\n")
    assert tried(tree, "> 18").outcome is Outcome.UNCLEAR


def test_the_next_stage_runs_when_the_first_one_is_over(tree: Tree) -> None:
    """A mutant survives only what both stages have."""
    (tree.root / "tests/test_b.py").write_text("def test_nothing():\n    pass\n")
    few = ["tests/test_b.py::test_nothing"]
    assert tree.try_mutant(mutant("> 18"), [few], 60).outcome is Outcome.SURVIVED
    assert tree.try_mutant(mutant("> 18"), [few, TESTS], 60).by == "tests/test_age.py::test_the_birthday"


def test_a_mutant_that_no_test_runs_survives(tree: Tree) -> None:
    """No run is needed to see that, and the verdict says it."""
    verdict = tree.try_mutant(mutant("> 18"), [], 60)
    assert (verdict.outcome, verdict.by) == (Outcome.SURVIVED, "no test runs it")


def test_a_test_that_is_known_to_pass_is_not_run_without_the_mutant(tree: Tree) -> None:
    """Its failure is the mutant's; a trial that has seen it pass notes that."""
    tried(tree, "> 18")
    assert tree.steady == {TESTS[1]}
    tree.steady = {TESTS[0]}
    broken = TEST.replace("assert not is_adult(age)", "assert False")
    (tree.root / "tests/test_age.py").write_text(broken)
    assert tried(tree, ">= 17").by == TESTS[0]


def test_the_copy_leaves_the_tree_alone(project: Path) -> None:
    """The copy has new files that are not committed, and none that git ignores; afterwards it is gone."""
    with copy_of(project) as copy:
        assert (copy.root / "tests/test_age.py").read_text() == TEST
        assert not (copy.root / "secret").exists()
        (copy.root / "mesh/age.py").write_text("")
    assert (project / "mesh/age.py").read_text() == SOURCE
    assert not copy.root.exists()


def test_the_table_counts_and_shows_survivors() -> None:
    """Equivalent and unclear mutants do not count; a time-out counts as not killed."""
    outcomes = [Outcome.KILLED] * 6 + [Outcome.SURVIVED, Outcome.TIMED_OUT, Outcome.EQUIVALENT, Outcome.UNCLEAR]
    verdicts = [Verdict(mutant(">= 17"), outcome) for outcome in outcomes]
    assert share(verdicts) == 6 / 8
    assert share([]) == 1
    shown = text(verdicts)
    assert "killed        6" in shown and "75%" in shown
    assert "survived       0 s  mesh/age.py:2 number" in shown
    assert shown.count("+    return age >= 17") == 4
