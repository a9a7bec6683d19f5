"""Work on all records never holds the event loop for long."""

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
from quart_app.grades.known_state import backup_chunks
from quart_app.grades.settings import GradesSettings
from quart_app.grades.sources import SnapshotFile, load
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
    """Exclude existing objects from garbage collection, as a replica does. Collecting those of other tests takes longer
    than the bound."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def described(storage: Storage) -> Header:
    state = storage.snapshot()
    return backup.header_of(state, POSITION, (), 1763700001000)


@pytest.fixture(scope="module")
def file(grades: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a backup."""
    path = tmp_path_factory.mktemp("grades") / "backup.csv.gz"
    path.write_bytes(b"".join(backup.chunks_of(described(grades), grades.snapshot())))
    return path


async def accept(_: Header) -> None:
    return None


async def test_making_a_backup_does_not_hold_the_loop() -> None:
    """Changes go on meanwhile, and each of them copies a shard."""
    grades = filled(RECORDS)
    header = described(grades)
    async with Watch(grades) as watch:
        size = sum([len(chunk) async for chunk in backup_chunks(header, grades.snapshot())])
    assert size > 10 * RECORDS and watch.changes > 10
    assert watch.held_ms < MOST_MS


async def test_restoring_does_not_hold_the_loop(file: Path) -> None:
    """The backup is unpacked, checked and stored in steps."""
    async with Watch() as watch:
        header, storage = await load(SnapshotFile(file), GradesSettings(), accept)
    assert storage.count == header.count == RECORDS
    assert watch.held_ms < MOST_MS


async def test_freeing_a_failed_restore_does_not_hold_the_loop(file: Path, tmp_path: Path) -> None:
    """All records that were read are freed in a thread."""
    bad = tmp_path / "cut.csv.gz"
    bad.write_bytes(file.read_bytes()[:-4])  # noqa: ASYNC240 - nothing else runs yet
    async with Watch() as watch:
        with pytest.raises(BadBackup, match="truncated"):
            await load(SnapshotFile(bad), GradesSettings(), accept)
    assert watch.held_ms < MOST_MS


async def test_a_state_is_freed_in_steps() -> None:
    """One step would hold the loop for a tenth of a second with a million records, so a thread does it in steps."""
    state = filled(2 * RECORDS)
    async with Watch() as watch:
        await asyncio.to_thread(state.free)
    assert state.snapshot().shards == []
    assert watch.held_ms < 20


async def test_a_backup_that_is_not_read_to_its_end_is_freed(grades: Storage) -> None:
    """A client that hangs up does not keep the old shards in memory."""
    state = dataclasses.replace(grades.snapshot())
    chunks: AsyncIterator[bytes] = backup_chunks(described(grades), state)
    await anext(chunks)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert state.shards == []
