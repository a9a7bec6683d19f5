"""The tests that concern a module or script of the core."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

#: The behaviour of a whole mesh.
BEHAVIOUR = "tests/mesh/test_behaviour.py"

#: Tests of a folder that are elsewhere.
FURTHER = {
    "mesh/groups": ("tests/mesh/events", "tests/mesh/requests"),
    "mesh/journal": ("tests/quart_app/grades/test_replication.py",),
    "mesh/operations": ("tests/mesh/later/test_waking.py",),
    "mesh/requests": ("tests/mesh/operations",),
}

#: All tests of the core.
ALL = "tests/mesh"


def stages(path: str, root: Path) -> list[list[str]]:
    """Return arguments of pytest for the tests that concern `path`, then for all other tests of the core."""
    first = concerning(path, root)
    return [first, [ALL, *(f"--ignore={each}" for each in first)]]


def concerning(path: str, root: Path) -> list[str]:
    """Return the test files and folders that can notice a change of `path`, the most likely first.

    These are the test file of the module's name, the tests of its folder, further folders, and the behaviour of a whole
    mesh. Files that do not exist are left out.
    """
    module = PurePosixPath(path)
    folder = PurePosixPath("tests") / module.parent
    own = str(folder / f"test_{module.stem}.py")
    beside = [str(folder)] if module.parent.name != "mesh" else _files(root, folder)
    found = dict.fromkeys([own, *beside, *FURTHER.get(str(module.parent), ()), BEHAVIOUR])
    return [each for each in found if (root / each).exists()]


def _files(root: Path, folder: PurePosixPath) -> list[str]:
    """Return the test files of one folder without those of its subfolders."""
    return [file.relative_to(root).as_posix() for file in sorted((root / folder).glob("test_*.py"))]
