"""Nothing that concerns all records at once holds the event loop: the replica answers meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bench.grades import POSITION, Watch, filled
from quart_app.grades import backup
from quart_app.grades.backup import BadBackup, Header
from quart_app.grades.known_state import stream
from quart_app.grades.settings import GradesSettings
from quart_app.grades.sources import File, load
from quart_app.grades.storage import Storage

RECORDS = 200_000
#: Held means computed by this process between two rounds of its loop, so a busy machine does not count. Done in
#: the loop itself, each of these takes several times as long.
MOST_MS = 100


@pytest.fixture(scope="module")
def grades() -> Storage:
    return filled(RECORDS)


@pytest.fixture(autouse=True)
def _as_a_replica_begins() -> Iterator[None]:
    """What was there before is none of the collector's business, as in a replica: to go through all that other tests
    have left in this process takes it longer than the bound."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def described(storage: Storage) -> Header:
    state = storage.snapshot()
    return backup.describe(state, POSITION, (), 1763700001000)


@pytest.fixture(scope="module")
def file(grades: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup on disk."""
    path = tmp_path_factory.mktemp("grades") / "backup.csv.gz"
    path.write_bytes(b"".join(backup.write(described(grades), grades.snapshot())))
    return path


async def accept(_: Header) -> None:
    return None


async def test_a_backup_is_made_beside_the_loop() -> None:
    """While changes go on, each of which copies the shard it is for."""
    grades = filled(RECORDS)
    header = described(grades)
    async with Watch(grades) as watch:
        size = sum([len(chunk) async for chunk in stream(header, grades.snapshot())])
    assert size > 10 * RECORDS and watch.changes > 10
    assert watch.held_ms < MOST_MS


async def test_a_restore_is_made_beside_the_loop(file: Path) -> None:
    """Unpacked, checked and stored in steps."""
    async with Watch() as watch:
        header, storage = await load(File(file), GradesSettings(), accept)
    assert storage.count == header.count == RECORDS
    assert watch.held_ms < MOST_MS


async def test_a_restore_that_fails_at_its_end_is_let_go_beside_the_loop(file: Path, tmp_path: Path) -> None:
    """All those records are to be freed; the next source is asked meanwhile."""
    bad = tmp_path / "cut.csv.gz"
    bad.write_bytes(file.read_bytes()[:-4])  # noqa: ASYNC240 - nothing else runs yet
    async with Watch() as watch:
        with pytest.raises(BadBackup, match="truncated"):
            await load(File(bad), GradesSettings(), accept)
    assert watch.held_ms < MOST_MS


async def test_a_state_is_let_go_in_steps() -> None:
    """Freed in one step, a million records hold the loop for a tenth of a second; so it is a thread's work, which
    gives way in between."""
    state = filled(2 * RECORDS)
    async with Watch() as watch:
        await asyncio.to_thread(state.forget)
    assert state.snapshot().shards == []
    assert watch.held_ms < 20


async def test_a_backup_that_was_given_up_leaves_nothing(grades: Storage) -> None:
    """Whoever hangs up in the middle does not keep the old shards alive."""
    state = dataclasses.replace(grades.snapshot())
    chunks: AsyncIterator[bytes] = stream(described(grades), state)
    await anext(chunks)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert state.shards == []
