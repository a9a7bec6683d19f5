"""Which tests a mutant is tried with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutants.concerned import ALL, BEHAVIOUR, FURTHER, concerning, stages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "tests"),
    [
        ("mesh/lease/choice.py", ["tests/mesh/lease/test_choice.py", "tests/mesh/lease", BEHAVIOUR]),
        ("mesh/lease/renew.lua", ["tests/mesh/lease", BEHAVIOUR]),
        ("mesh/requests/sweep.lua", ["tests/mesh/requests", "tests/mesh/operations", BEHAVIOUR]),
    ],
)
def test_the_tests_of_a_module(path: str, tests: list[str]) -> None:
    """The file of its name, its folder, further folders, then the whole mesh."""
    assert concerning(path, ROOT) == tests


def test_a_module_outside_of_folders_has_no_subfolders() -> None:
    """`mesh/keys.py` is tried with the files of `tests/mesh`, its own first."""
    found = concerning("mesh/keys.py", ROOT)
    assert found[0] == "tests/mesh/test_keys.py" and BEHAVIOUR in found
    assert all(each.endswith(".py") for each in found)


def test_all_other_tests_of_the_core_come_second() -> None:
    """Another folder may notice what its own does not; no test runs twice."""
    first, second = stages("mesh/lease/renew.lua", ROOT)
    assert first == ["tests/mesh/lease", BEHAVIOUR]
    assert second == [ALL, "--ignore=tests/mesh/lease", f"--ignore={BEHAVIOUR}"]


def test_every_file_of_the_core_has_concerning_its_own() -> None:
    """No file is tried with the behaviour of the whole mesh alone."""
    files = [file for file in (ROOT / "mesh").rglob("*") if file.suffix in {".py", ".lua"}]
    alone = [str(file) for file in files if concerning(file.relative_to(ROOT).as_posix(), ROOT) == [BEHAVIOUR]]
    assert files and alone == []


def test_the_further_tests_exist() -> None:
    """The list names folders and files that are there."""
    assert all((ROOT / folder).is_dir() for folder in FURTHER)
    assert all((ROOT / test).exists() for tests in FURTHER.values() for test in tests)
