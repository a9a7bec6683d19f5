"""The twelve mistakes of `tests/support/typing/wrong.py` are found by mypy and by pyright, and nothing else is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tests" / "support" / "typing"


def marked(path: Path) -> set[int]:
    """Return the numbers of the lines with a mistake."""
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if "# wrong:" in line}


def by_mypy(folder: Path) -> set[tuple[str, int]]:
    """Return the files and lines that mypy reports."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--follow-imports", "silent"]
    done = subprocess.run(
        [*command, "right.py", "wrong.py"],
        capture_output=True, text=True, timeout=300, cwd=folder, check=False, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    return {
        (name, int(line))
        for name, line in re.findall(r"^(\S+\.py):(\d+): error", done.stdout, re.MULTILINE)
        if name in ("right.py", "wrong.py")
    }


def by_pyright(folder: Path) -> set[tuple[str, int]]:
    """Return the files and lines that pyright reports. Skips where there is no pyright, except in CI."""
    program = shutil.which("pyright", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None and not os.environ.get("CI"):
        pytest.skip("pyright is not installed: pip install pyright")
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [program or "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)],
        capture_output=True, text=True, timeout=300, cwd=folder, check=False,
    )  # fmt: skip
    if not done.stdout.startswith("{") and not os.environ.get("CI"):
        # Its package fetches the program itself at the first start.
        pytest.skip(f"pyright does not start here: {(done.stderr or done.stdout)[-200:]}")
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", [by_mypy, by_pyright])
def test_a_type_checker_finds_each_mistake_and_accepts_what_is_right(
    check: Callable[[Path], set[tuple[str, int]]], tmp_path: Path
) -> None:
    """A user sees the mistake in the editor."""
    for name in ("right.py", "wrong.py"):
        shutil.copy(FOLDER / name, tmp_path)
    lines = marked(tmp_path / "wrong.py")
    assert len(lines) == 12
    assert check(tmp_path) == {("wrong.py", line) for line in lines}
