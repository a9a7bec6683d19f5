"""Two releases on one Redis: an upgrade, a roll-back, and a release that is too old for the data.

The older release comes out of the history of the repository; without it these tests are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import random
import signal
import subprocess
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

from mesh import Mesh, MeshSettings, OlderRelease, Operations, Transaction, join
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
    # It looks for this package when it starts, and takes the files of its page /docs from there. No test opens it.
    package = folder / "swagger_ui_py-23.9.23.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: swagger-ui-py\nVersion: 23.9.23\n")
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


notes = Operations("notes")
written = notes.hash("written", str, int, shared=True)


class Note(Struct):
    text: str


@notes.command
async def write(tx: Transaction, body: Note) -> None:
    tx.add(written[body.text])


@notes.command
async def write_later(tx: Transaction, body: Note) -> None:
    tx.send(write, body, after=timedelta(seconds=1))


#: What an older release does not know, by the name of the option.
OPTIONS: dict[str, Callable[[Mesh, Note], Awaitable[Any]]] = {
    "after= and at=": lambda mesh, note: mesh.send(write, note, after=timedelta(seconds=1)),
    "after= and at= of a handler": lambda mesh, note: mesh.call(write_later, note),
    "key=": lambda mesh, note: mesh.call(write, note, key=note.text),
}


@pytest.mark.parametrize("comes_first", ["older", "newer"])
async def test_options_are_refused_while_an_older_release_is_live(
    replicas: Replicas, older: Path, comes_first: str
) -> None:
    """An option that the older release does not know raises OlderRelease, and nothing is written. Requests without
    options pass. Once the older release has left, all options work."""
    process = replicas.spawn({"MESH_CLASS": "A"}, code=older) if comes_first == "older" else None
    if process is not None:
        await replicas.ready(process)
    settings = MeshSettings(redis=replicas.server.settings, lease_ttl_ms=3000, class_="B")
    async with join(notes, settings=settings) as mesh:
        if process is None:
            await mesh.send(write, Note("before"), after=timedelta(milliseconds=1))
            process = replicas.spawn({"MESH_CLASS": "A"}, code=older)
            await replicas.ready(process)
            await asyncio.sleep(1.5)
        await mesh.call(write, Note("plain"))
        for name, use in OPTIONS.items():
            with pytest.raises(
                OlderRelease, match=f"^{name.removesuffix(' of a handler')} cannot be used while replica-"
            ):
                await use(mesh, Note(name))
        assert (await mesh.books())["waiting"] == 0
        process.send(signal.SIGTERM)
        assert await process.ended(15) == 0
        for name, use in OPTIONS.items():
            await use(mesh, Note(name))
        expected = dict.fromkeys(("plain", *OPTIONS, *(["before"] if comes_first == "newer" else [])), "1")

        async def all_written() -> bool:
            return await mesh.shared.hgetall("shared:notes:written") == expected

        await eventually(all_written, 15)


async def _store_until(
    replicas: Replicas, live: list[Process], over: asyncio.Event, factors: Iterator[int]
) -> list[int]:
    """Store values, each until a replica says that it has it; return them."""
    stored = []
    while not over.is_set():
        value, done = PRIME * next(factors), False
        while not done:
            process = random.choice(live)
            with contextlib.suppress(httpx.TransportError):
                items = [{"value": value, "ttl": 600, "cls": random.choice("AB")}]
                answer = await replicas.client.post(f"{process.public}/values", json=items)
                assert answer.status_code in {200, 503}, answer.text
                done = answer.status_code == 200
            await asyncio.sleep(0.02)
        stored.append(value)
    return stored


@pytest.mark.faults
@pytest.mark.parametrize("direction", ["upgrade", "roll-back"])
async def test_a_rolling_update_under_load_loses_nothing(replicas: Replicas, older: Path, direction: str) -> None:
    """Each replica is replaced by one of the other release; what was acknowledged is shown in the end."""
    first_code, second_code = (older, None) if direction == "upgrade" else (None, older)
    env = {"MESH_CLASSES": "AB"}
    live = [replicas.spawn({**env, "MESH_CLASS": cls}, code=first_code) for cls in "ABAB"]
    for process in live:
        await replicas.ready(process)
    over, factors = asyncio.Event(), itertools.count(2)
    async with asyncio.TaskGroup() as tasks:
        loads = [tasks.create_task(_store_until(replicas, live, over, factors)) for _ in range(4)]
        for leaving in list(live):
            live.remove(leaving)
            leaving.send(signal.SIGTERM)
            assert await leaving.ended(20) == 0
            # It takes the database over, and with it the class.
            joining = replicas.spawn(env, code=second_code)
            await replicas.ready(joining)
            live.append(joining)
        over.set()
    stored = [value for load in loads for value in load.result()]
    assert len(stored) > 100
    for process in live:
        lost = set(stored) - set(await shown(replicas, process))
        assert not lost, f"{len(lost)} of {len(stored)} values are not shown"


async def test_a_release_that_is_too_old_for_the_data_refuses_with_a_sentence(replicas: Replicas, older: Path) -> None:
    """A release does not read data in a form that it does not know, as after a roll-back."""
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
