"""docs/library.md: its example is run as it stands, on the mesh alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
TEXT = PAGE.read_text("utf-8")


def example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def printed() -> str:
    (found,) = re.findall(r"it prints\n\n```\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def run(server: Server, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(example())
    env = {**os.environ, "REDIS_URL": server.url, "MESH_LEASE_TTL_MS": "1000"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return "".join(line for line in done.stdout.splitlines(keepends=True) if line.startswith("{"))


def test_the_example_has_at_most_twenty_lines_and_knows_the_mesh_alone() -> None:
    """Blank lines are not counted; neither is the application needed."""
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 20
    assert [line for line in lines if "import" in line] == ["import asyncio", "from mesh import Class, Worker, join"]


def test_the_example_prints_what_the_page_says_and_counts_on_when_run_again(server: Server, tmp_path: Path) -> None:
    """Its database is the same one the second time, with the data in it."""
    assert run(server, tmp_path) == printed()
    assert run(server, tmp_path).endswith("{1: {'count': 2}}\n")


def test_the_mesh_imports_nothing_of_the_application() -> None:
    """Usable without it means: it is not even loaded."""
    code = "import sys, mesh; print([name for name in sys.modules if name.partition('.')[0] in {'quart_app', 'quart'}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
