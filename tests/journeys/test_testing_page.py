"""docs/testing.md: its program and its tests are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Server

ROOT = Path(__file__).parents[2]
PROGRAM, *TESTS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text("utf-8"), re.DOTALL)
#: What the page says in words: names that a reader imports.
IMPORTS = """
from datetime import timedelta
import pytest
from greetings import Greet, Greeted, count, greetings, put, seen, total
from mesh import Class, GivenUp, Unavailable
"""


def code_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_the_program_and_its_test_are_as_short_as_promised() -> None:
    """The program has at most 30 lines and its test at most 15."""
    assert len(code_lines(PROGRAM)) <= 30
    assert len(code_lines(TESTS[0])) <= 15


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a user who has copied everything."""
    (tmp_path / "greetings.py").write_text(PROGRAM)
    (tmp_path / "test_greetings.py").write_text(TESTS[0] + IMPORTS + "\n\n".join(TESTS[1:]))
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    return tmp_path


def run(folder: Path, *command: str, **env: str) -> str:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    done = subprocess.run(
        (sys.executable, *command), cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PYTEST = ("-m", "pytest", "-q", "-p", "pytest_asyncio.plugin", "-p", "pytest_mesh")


def test_its_tests_pass(folder: Path) -> None:
    """The tests of the page pass over fakeredis."""
    assert f"{len(TESTS)} passed" in run(folder, *PYTEST)


def test_its_last_test_passes_on_a_real_server(folder: Path, server: Server) -> None:
    """The last test of the page passes on a real server, with the option of the plugin."""
    assert "1 passed" in run(folder, *PYTEST, "-k", "whatever", f"--mesh-redis={server.url}")


def test_its_program_runs(folder: Path, server: Server) -> None:
    """The program of the page runs beside a server, without a test."""
    assert "hello world 1\n" in run(folder, "greetings.py", REDIS_URL=server.url)
