"""Two releases on one Redis: an upgrade, a roll-back, and a release that is too old for the data.

The older release comes out of the history of the repository; without it these tests are skipped.
"""

from __future__ import annotations

import io
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mesh.lease.server import FORMAT
from quart_app.exits import EXIT_SETUP
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
#: The oldest release that can share a Redis with this one: the first that knows the format of the data.
OLDEST = "303712d"
PRIME = 1_000_003


def history_has(commit: str) -> bool:
    return not subprocess.run(["git", "cat-file", "-e", commit], cwd=ROOT, capture_output=True, check=False).returncode


pytestmark = pytest.mark.skipif(not history_has(OLDEST), reason=f"the repository here has no commit {OLDEST}")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The code of the oldest supported release."""
    command = ["git", "archive", OLDEST, "mesh", "quart_app"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    folder = tmp_path / "older"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


async def store(replicas: Replicas, process: Process, factor: int, cls: str) -> int:
    """Store a value with a replica; return it."""
    items = [{"value": PRIME * factor, "ttl": 600, "cls": cls}]
    answer = await replicas.client.post(f"{process.public}/values", json=items)
    assert answer.status_code == 200, answer.text
    return PRIME * factor


async def shown(replicas: Replicas, process: Process) -> Any:
    answer = await replicas.client.get(f"{process.public}/values/{PRIME}")
    return [item["value"] for item in answer.json()] if answer.status_code == 200 else answer.status_code


async def all_show(replicas: Replicas, processes: list[Process], values: list[int]) -> None:
    """Wait until every replica shows these values."""
    seen: list[Any] = []

    async def is_shown() -> bool:
        seen[:] = [await shown(replicas, process) for process in processes]
        return all(each == sorted(values) for each in seen)

    await eventually(is_shown, 15, lambda: str(seen))


@pytest.mark.parametrize("direction", ["upgrade", "roll-back"])
async def test_two_releases_serve_one_mesh_and_take_over_from_each_other(
    replicas: Replicas, older: Path, direction: str
) -> None:
    """One runs, the other joins; both store in both; the first leaves, and nothing is lost."""
    first_code, second_code = (older, None) if direction == "upgrade" else (None, older)
    first = replicas.spawn({"MESH_CLASS": "A"}, code=first_code)
    await replicas.ready(first)
    values = [await store(replicas, first, 2, "A")]
    second = replicas.spawn({"MESH_CLASS": "B"}, code=second_code)
    await replicas.ready(second)
    for number, process in enumerate((first, second)):
        for cls in "AB":
            values.append(await store(replicas, process, 3 + 2 * number + "AB".index(cls), cls))
    await all_show(replicas, [first, second], values)
    first.send(signal.SIGTERM)
    assert await first.ended(15) == 0
    third = replicas.spawn(code=second_code)
    await replicas.ready(third)
    await all_show(replicas, [second, third], values)


async def test_a_release_that_is_too_old_for_the_data_refuses_with_a_sentence(replicas: Replicas, older: Path) -> None:
    """After a roll-back it would hide or misread what it does not know."""
    (process,) = await replicas(1)
    await store(replicas, process, 2, "A")
    process.send(signal.SIGTERM)
    assert await process.ended(15) == 0
    with replicas.server.redis() as admin:
        admin.set("mesh:format", FORMAT + 1)
    for code in (older, None):
        refused = replicas.spawn(code=code)
        assert await refused.ended(30) == EXIT_SETUP
        assert "a newer release has written to this mesh" in refused.log.read_text()
