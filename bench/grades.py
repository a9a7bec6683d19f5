"""A million grades: memory, a backup while serving, a restore, and how long they held the event loop.

    python -m bench.grades [records]

Giver and taker of the backup run in one process.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator

from mesh.journal.position import Position
from quart_app.grades import backup
from quart_app.grades.backup import BackupReader, Header
from quart_app.grades.known_state import backup_chunks
from quart_app.grades.storage import Storage

POSITION = Position("0" * 16, 1_000_000, "1763700001000-0")


def resident_mb() -> float:
    """Return the memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


class Watch:
    """Measures the longest time that the event loop was held, and the most memory, while its block runs.

    `waited_ms` is by the clock and includes the time that other processes took. `held_ms` is the time that this process
    computed, in any thread, between two rounds of its loop; this is what can be promised.
    """

    def __init__(self, storage: Storage | None = None) -> None:
        self.held_ms = self.waited_ms = 0.0
        self.peak_mb = resident_mb()
        self.changes = 0
        self._storage = storage

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        self._began = time.perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        await asyncio.sleep(0.002)  # the round that is under way counts, too
        self._task.cancel()
        await asyncio.wait([self._task])

    def held(self) -> str:
        return f"event loop held at most {self.held_ms:.0f} ms (by the clock {self.waited_ms:.0f} ms)"

    async def _run(self) -> None:
        while True:
            before, computed = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.001)
            self.waited_ms = max(self.waited_ms, (time.perf_counter() - before) * 1000 - 1)
            self.held_ms = max(self.held_ms, (time.process_time() - computed) * 1000)
            self.peak_mb = max(self.peak_mb, resident_mb())
            if self._storage is not None:
                self.changes += 1
                self._storage.merge(f"user-{self.changes * 7919 % 1_000_000:07d}", {1: (self.changes, 1 << 62)})


def filled(records: int) -> Storage:
    """Return a state with four fields for each user, each set by an entry of its own."""
    storage, first = Storage(), 1763700000000 << 16
    for number in range(records):
        changes = {at: (number % 5000, first + 4 * number + at) for at in range(4)}
        storage.merge(f"user-{number:07d}", changes)
    return storage


async def give(storage: Storage, folder: asyncio.Queue[bytes]) -> None:
    """Make a backup and pass it through a small queue, so that a slow taker slows the giver."""
    state = storage.snapshot()
    header = backup.header_of(state, POSITION, (), 1763700001000)
    async for chunk in backup_chunks(header, state):
        await folder.put(chunk)
    await folder.put(b"")


async def taken(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while chunk := await queue.get():
        yield chunk


async def restore(chunks: AsyncIterator[bytes], records: int) -> tuple[Header, Storage]:
    reader = BackupReader(records)
    async for chunk in chunks:
        await asyncio.to_thread(reader.feed, chunk)
    return await asyncio.to_thread(reader.result)


async def measure(records: int) -> bool:
    """Print the figures; return whether the promises hold."""
    base = resident_mb()
    storage = filled(records)
    gc.collect()
    full = resident_mb() - base
    print(f"{records:,} records in memory: {full:.0f} MB, {full * 1e6 / records:.0f} bytes each")

    before = resident_mb()
    sizes = 0
    async with Watch(storage) as making:
        state = storage.snapshot()
        header = backup.header_of(state, POSITION, (), 1763700001000)
        async for chunk in backup_chunks(header, state):
            sizes += len(chunk)
    print(
        f"backup: {making.seconds:.1f} s, {sizes / 1e6:.1f} MB, at most {making.peak_mb - before:.0f} MB more memory, "
        f"{making.held()}, {making.changes} changes beside it"
    )

    storage = filled(records)
    gc.collect()
    before = resident_mb()
    queue: asyncio.Queue[bytes] = asyncio.Queue(4)
    async with Watch() as taking:
        giving = asyncio.create_task(give(storage, queue))
        _, again = await restore(taken(queue), records)
        await giving
    print(
        f"backup and restore together: {taking.seconds:.1f} s, at most {taking.peak_mb - before:.0f} MB more memory "
        f"({full:.0f} MB of it the restored records), {taking.held()}"
    )
    same = again.digest == storage.digest
    print(f"digests equal: {same}")
    async with Watch() as leaving:
        await asyncio.to_thread(again.free)
    print(f"release of a state: {leaving.seconds:.2f} s, {leaving.held()}")
    return same and max(making.held_ms, taking.held_ms, leaving.held_ms) < 100


if __name__ == "__main__":
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    sys.exit(0 if asyncio.run(measure(records)) else 1)
