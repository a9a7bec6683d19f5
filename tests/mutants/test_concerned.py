"""Which tests a mutant is tried with, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutants.concerned import FIRST_S, stages
from tests.support.mutants.mutant import Mutant
from tests.support.mutants.reach import Reach

SOURCE = "def f(a):\n    if a:\n        return 1\n    return 2\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("mesh/a/b.py", "mesh/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SOURCE)
    return tmp_path


def reach_of(**tests: tuple[float, dict[str, list[int]], list[str]]) -> Reach:
    return Reach(
        {
            name: {"seconds": seconds, "passed": True, "lines": lines, "scripts": scripts}
            for name, (seconds, lines, scripts) in tests.items()
        }
    )


def test_only_tests_that_run_the_line_are_tried(root: Path) -> None:
    """Those of the module come first, then those of its folder, then others; slow ones come last."""
    line_3 = {"mesh/a/b.py": [2, 3]}
    reach = reach_of(
        **{
            "tests/mesh/c/test_x.py::fast": (0.2, line_3, []),
            "tests/mesh/c/test_x.py::faster": (0.1, line_3, []),
            "tests/mesh/a/test_y.py::beside": (0.2, line_3, []),
            "tests/mesh/a/test_b.py::slow": (2.0, line_3, []),
            "tests/mesh/a/test_b.py::own": (0.3, line_3, []),
            "tests/mesh/a/test_b.py::elsewhere": (0.1, {"mesh/a/b.py": [2, 4]}, []),
        }
    )
    names = ["a/test_b.py::own", "a/test_y.py::beside", "c/test_x.py::faster", "c/test_x.py::fast", "a/test_b.py::slow"]
    assert stages(Mutant("mesh/a/b.py", 3, "", SOURCE, ""), root, reach, 60) == [
        [f"tests/mesh/{name}" for name in names]
    ]


def test_a_line_that_no_test_names_is_its_statement(root: Path) -> None:
    """Of a statement of several lines, some are named. If its own line is, only that counts."""
    source = "def f(a):\n    return g(\n        a,\n        1,\n    )\n"
    (root / "mesh/b.py").write_text(source)
    reach = reach_of(
        **{
            "tests/mesh/test_b.py::begins": (0.1, {"mesh/b.py": [2]}, []),
            "tests/mesh/test_b.py::runs": (0.2, {"mesh/b.py": [2, 3]}, []),
        }
    )
    both = ["tests/mesh/test_b.py::begins", "tests/mesh/test_b.py::runs"]
    assert stages(Mutant("mesh/b.py", 3, "", source, ""), root, reach, 60) == [both[1:]]
    assert stages(Mutant("mesh/b.py", 4, "", source, ""), root, reach, 60) == [both]


def test_a_line_that_no_test_runs_is_its_module(root: Path) -> None:
    """Its function may have run at import. A module that no test runs needs no run at all."""
    reach = reach_of(**{"tests/mesh/test_b.py::t": (0.1, {"mesh/b.py": [2, 3]}, [])})
    assert stages(Mutant("mesh/b.py", 4, "", SOURCE, ""), root, reach, 60) == [["tests/mesh/test_b.py::t"]]
    assert stages(Mutant("mesh/a/b.py", 4, "", SOURCE, ""), root, reach, 60) == []


def test_long_tests_wait_for_a_second_run(root: Path) -> None:
    """The first run is short, because it kills most mutants."""
    reach = reach_of(**{f"tests/mesh/test_b.py::t{n}": (FIRST_S / 2, {"mesh/b.py": [4]}, []) for n in range(5)})
    first, second = stages(Mutant("mesh/b.py", 4, "", SOURCE, ""), root, reach, 60)
    assert (len(first), len(second)) == (2, 3)


def test_there_are_not_more_tests_than_seconds(root: Path) -> None:
    """The likeliest are tried. A test over a real server is less likely than its twin, although it may be faster."""
    facts = {"mesh/b.py": [4]}
    reach = reach_of(
        **{
            "tests/mesh/test_b.py::t[real]": (0.1, facts, []),
            "tests/mesh/test_b.py::t[fake]": (3.0, facts, []),
            "tests/mesh/test_b.py::u[real]": (4.0, facts, []),
        }
    )
    mutant = Mutant("mesh/b.py", 4, "", SOURCE, "")
    assert stages(mutant, root, reach, 5) == [["tests/mesh/test_b.py::t[fake]", "tests/mesh/test_b.py::u[real]"]]
    assert stages(mutant, root, reach, 2) == [["tests/mesh/test_b.py::t[fake]"]]


def test_a_script_concerns_the_tests_that_run_its_line(root: Path) -> None:
    """A test over a real server runs what its twin runs, and one without a twin counts if it runs the script."""
    script = ["mesh/b.lua"]
    reach = reach_of(
        **{
            "tests/mesh/test_b.py::t[fake]": (0.1, {"mesh/b.lua": [5]}, script),
            "tests/mesh/test_b.py::t[real]": (0.2, {}, script),
            "tests/mesh/test_b.py::u[fake]": (0.1, {"mesh/b.lua": [15]}, script),
            "tests/mesh/test_b.py::u[real]": (0.2, {}, script),
            "tests/mesh/c/test_x.py::alone": (0.3, {}, script),
            "tests/mesh/c/test_x.py::another": (0.3, {}, ["mesh/c.lua"]),
        }
    )
    (found,) = stages(Mutant("mesh/b.lua", 5, "", "", ""), root, reach, 60)
    assert found == ["tests/mesh/test_b.py::t[fake]", "tests/mesh/c/test_x.py::alone", "tests/mesh/test_b.py::t[real]"]


def test_the_line_of_a_longer_statement_is_looked_for_nearby(root: Path) -> None:
    """A runtime names the first or the last line of a statement only."""
    reach = reach_of(**{"tests/mesh/test_b.py::t[fake]": (0.1, {"mesh/b.lua": [5]}, ["mesh/b.lua"])})
    assert stages(Mutant("mesh/b.lua", 7, "", "", ""), root, reach, 60) == [["tests/mesh/test_b.py::t[fake]"]]
    assert stages(Mutant("mesh/b.lua", 17, "", "", ""), root, reach, 60) == []
