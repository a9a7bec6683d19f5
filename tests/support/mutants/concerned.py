"""The tests that a mutant is tried with: those that run the changed line, the most likely to notice it first."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tests.support.mutants.mutant import Mutant
from tests.support.mutants.places import places
from tests.support.mutants.reach import Reach

#: Seconds of tests in the first of two runs. Most mutants need no second one.
FIRST_S = 8.0

#: Tests that take longer than this come last. Most of them start a server.
SLOW_S = 0.4

#: A statement of a script may begin or end so many lines away.
NEAR = 3


def stages(mutant: Mutant, root: Path, reach: Reach, most_s: float) -> list[list[str]]:
    """Return the names of tests for one run of pytest after the other; no test comes twice.

    All of them together take about `most_s` seconds at most: nearly every test runs some lines, and a mutant there that
    the likeliest tests do not notice is one for a person to look at.
    """
    if mutant.path.endswith(".lua"):
        tests = of_script(mutant.path, mutant.line, reach)
    else:
        around = places(mutant.path, mutant.line, _modules(root))
        # A function that runs at import, too, is in no test's lines; then the module counts.
        tried = ({mutant.path: {mutant.line}}, around, {mutant.path: None})
        tests = next(filter(None, map(reach.tests, tried)), set())
    stages: list[list[str]] = [[], []]
    spent = 0.0
    for test in _ordered(tests, mutant.path, reach):
        if spent < most_s:
            stages[spent >= FIRST_S].append(test)
        spent += reach.seconds(test)
    return [stage for stage in stages if stage]


def of_script(path: str, line: int, reach: Reach) -> set[str]:
    """Return the tests that run a line of a script.

    The lines are known where fakeredis runs the script. A test over a real server runs what its twin does; one without
    a twin counts if it runs the script, or is in the script's folder.
    """
    near = set(range(line - NEAR, line + NEAR + 1))
    tests = reach.tests({path: {line}}) or reach.tests({path: near})
    twins = {twin for test in tests if (twin := test.replace("fake", "real")) in reach.all}
    known = reach.measured | {test.replace("fake", "real") for test in reach.measured}
    alone = {test for test in reach.all - known if _folder_of(test) == _folder(path)} | (reach.running(path) - known)
    return tests | twins | alone


def _ordered(tests: set[str], path: str, reach: Reach) -> list[str]:
    """Return the fast tests first: those of the file of the module's name, those of its folder, and all others.

    A test that also runs over fakeredis comes last over a real server.
    """
    folder = _folder(path)
    own = f"{folder}test_{PurePosixPath(path).stem}.py"

    def rank(test: str) -> tuple[bool, bool, bool, bool, float]:
        seconds, is_twin = reach.seconds(test), "real" in test and test.replace("real", "fake") in tests
        return is_twin, seconds > SLOW_S, not test.startswith(own), not test.startswith(folder), seconds

    return sorted(tests, key=rank)


def _folder(path: str) -> str:
    return f"tests/{PurePosixPath(path).parent}/"


def _folder_of(test: str) -> str:
    return f"{PurePosixPath(test.partition('::')[0]).parent}/"


def _modules(root: Path) -> dict[str, str]:
    return {file.relative_to(root).as_posix(): file.read_text("utf-8") for file in (root / "mesh").rglob("*.py")}
