"""The grades part of several replicas in one process, on one real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from mesh import Connections, RedisSettings, Unavailable
from mesh.journal.journal import Log
from quart_app.grades.backup import BackupReader
from quart_app.grades.known_state import backup_chunks
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.replication import GradesStage, Replication
from quart_app.grades.settings import GradesSettings
from quart_app.grades.sources import NoBackup, Source

LOG_KEY = "shared:grades:log"
#: Changes a backup on its way, as a bad network or disk would.
Spoil = Callable[[bytes], bytes]


class Peer:
    """A node as the source of a backup for another."""

    kind = "peer"

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self.blocks_founding = node.is_ready
        self._node = node

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            data = await self._node.backup()
        except Unavailable as error:
            raise NoBackup(str(error)) from error
        self._node.asked += 1

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 500):
                yield data[at : at + 500]

        yield chunks()


class Node:
    """The grades part of one replica. A test can pause it (its memory stays), end it in order, or kill it."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.name = name
        self.asked = 0
        self.spoil: Spoil = bytes
        self.disk = nodes.folder / name
        self._nodes = nodes
        self._task: asyncio.Task[None] | None = None
        self.replication = self._new()

    @property
    def settings(self) -> GradesSettings:
        chosen: dict[str, Any] = {"snapshot_every": 5, "founder_patience_s": 0.2, "set_timeout_ms": 3000}
        return GradesSettings(**{**chosen, **self._nodes.settings, "snapshot_dir": self.disk})

    def _new(self) -> Replication:
        return Replication(self.settings, GradesMetrics(CollectorRegistry()))

    @property
    def is_up(self) -> bool:
        return self._task is not None

    @property
    def is_ready(self) -> bool:
        return self.replication.stage is GradesStage.READY

    async def start(self, *, ready: bool = True) -> None:
        """Begin, or go on with the state in memory, and wait until the node is ready."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        if ready:
            await eventually(lambda: self.is_ready, f"{self.name} is ready")

    async def _follow(self) -> None:
        redis = self._nodes.client()
        log = Log(redis, self._nodes.client, self._nodes.key, writer=self.name)
        try:
            async with self.replication.following(log, self._peers):
                await asyncio.Event().wait()
        finally:
            await redis.aclose()

    async def _peers(self) -> Sequence[Source]:
        return [Peer(node) for node in self._nodes if node is not self and node.is_up]

    async def pause(self) -> None:
        """Stop following the log; the state stays in memory."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def leave(self) -> None:
        """End as after SIGTERM: only the files on disk stay."""
        await self.pause()
        self.replication = self._new()

    async def kill(self) -> None:
        """End as after kill -9: nothing is written at the end."""
        self.replication._save_orphans = _nothing  # type: ignore[method-assign]
        await self.leave()

    async def set(self, user_id: str, **fields: int) -> UserGrade:
        return await self.replication.set(GradeUpdate(user_id=user_id, **fields))

    async def backup(self) -> bytes:
        header, state = self.replication.header_and_records()
        return self.spoil(b"".join([chunk async for chunk in backup_chunks(header, state)]))

    def digest(self) -> str:
        return self.replication.header_and_records()[0].digest

    def number(self) -> int:
        return self.replication.header_and_records()[0].number

    def snapshots(self) -> list[Path]:
        return sorted(self.disk.glob("*.csv.gz"))

    def restores(self, source: str, outcome: str) -> float:
        return self.replication._metrics.restores.labels(source, outcome)._value.get()  # type: ignore[no-any-return]


class Nodes(list[Node]):
    """All nodes of a test."""

    def __init__(self, port: int, folder: Path, key: str = LOG_KEY, **settings: Any) -> None:
        self._port = port
        self.folder = folder
        self.key = key
        self.settings = settings
        self.redis = self.client()

    def client(self) -> Redis:
        settings = RedisSettings(host="127.0.0.1", port=self._port)
        return Connections(settings).client("grades-test", block_ms=1000, shared=True)

    async def up(self, *names: str) -> list[Node]:
        """Start new nodes and wait until they are ready."""
        nodes = [Node(self, name) for name in names]
        self.extend(nodes)
        await asyncio.gather(*(node.start() for node in nodes))
        return nodes

    async def agree(self) -> str:
        """Wait until all nodes that are up have read equally far, and return their common digest."""
        up = [node for node in self if node.is_up]

        def level() -> bool:
            return all(node.is_ready for node in up) and len({node.number() for node in up}) == 1

        await eventually(level, "all nodes have read equally far")
        digests = {node.digest() for node in up}
        assert len(digests) == 1, f"the digests differ: {digests}"
        return digests.pop()

    async def close(self) -> None:
        await asyncio.gather(*(node.kill() for node in self))
        await self.redis.aclose()


async def eventually(condition: Callable[[], bool], what: str, wait_s: float = 10) -> None:
    """Wait until a condition is true. Raises AssertionError after `wait_s` seconds."""
    try:
        async with asyncio.timeout(wait_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {wait_s} s: {what}") from None


async def _nothing() -> None:
    return None


def verified(data: bytes) -> BackupReader:
    """Return a reader that has read a whole backup."""
    reader = BackupReader(10**6)
    reader.feed(data)
    reader.result()
    return reader
