"""docs/library.md: its program is run as it stands, and all of its operations are called."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mesh import Database
from mesh.testing import MeshKit
from tests.support.server import Server

TEXT = (Path(__file__).parents[2] / "docs" / "library.md").read_text("utf-8")
PROGRAM, *BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def printed() -> str:
    """Return what the page says that the program prints."""
    (found,) = re.findall(r"it prints\n\n```\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def run(server: Server, folder: Path) -> str:
    """Run the program and return what it printed, without its log."""
    script = folder / "greetings.py"
    script.write_text(PROGRAM)
    env = {**os.environ, "REDIS_URL": server.url, "MESH_LEASE_TTL_MS": "1000"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return "".join(line for line in done.stdout.splitlines(keepends=True) if line.startswith(("{", "hello")))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """Return the module that all blocks of the page make together."""
    path = tmp_path / "page_of_the_library.py"
    path.write_text("\n\n".join([PROGRAM, *BLOCKS]))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_the_program_is_short_and_knows_the_library_alone() -> None:
    """The program has at most thirty lines of code, and does not import the application."""
    lines = [line for line in PROGRAM.splitlines() if line.strip()]
    assert len(lines) <= 30
    assert [line for line in lines if "import" in line] == [
        "import asyncio",
        "from mesh import Operations, Query, Transaction, join",
        "from msgspec import Struct",
    ]


def test_the_program_prints_what_the_page_says_and_counts_on_when_run_again(server: Server, tmp_path: Path) -> None:
    """The second run has the same database, with the data of the first."""
    assert run(server, tmp_path) == printed()
    assert run(server, tmp_path).endswith("{1: 2}\n")


async def test_fifty_greetings_at_once_count_fifty(page: Any) -> None:
    """No word of the program is about conflicts, and no update is lost."""
    async with MeshKit(page.greetings, replicas=2) as kit:
        answers = await asyncio.gather(*(kit[0].call(page.put, page.Greet("ann")) for _ in range(50)))
        assert sorted(answer.times for answer in answers) == [*range(1, 51)]
        assert await kit[1].gather(page.count) == {1: 50, 2: 0}


async def test_a_thousand_greetings_on_one_key_count_a_thousand(page: Any, server: Server) -> None:
    """All at once, on a real server: each conflict gets its turn."""
    async with MeshKit(page.greetings, redis=server.url) as kit:
        deadline = timedelta(seconds=60)
        await asyncio.gather(*(kit[0].call(page.put, page.Greet("ann"), deadline=deadline) for _ in range(1000)))
        assert await kit[0].gather(page.count) == {1: 1000}


async def test_the_other_blocks_do_what_the_page_says(page: Any) -> None:
    """A contract, a counter that meets no conflict, an error that arrives as itself."""
    async with MeshKit(page.greetings) as kit:
        mesh = kit[0]
        assert (await mesh.call(page.rename, page.Greet("ann"), to=Database(1))).greeting == "you are ann now"
        await asyncio.gather(*(mesh.call(page.visit) for _ in range(20)))
        assert (await kit.read(page.visits, database=1), mesh.conflicts()) == (20, {})
        await mesh.call(page.take, page.Greet("ann"))
        with pytest.raises(page.NameTaken, match="Somebody else has this name") as caught:
            await mesh.call(page.take, page.Greet("ann"))
        assert caught.value.name == "ann"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(mesh(?:\.[a-z]+)?)` \|", TEXT))))
def test_the_modules_of_the_page_are_public(name: str) -> None:
    """Each can be imported and says what it offers."""
    assert importlib.import_module(name).__all__
