"""Sources of a whole state: the backup of a peer, and a snapshot on disk. Both are verified in the same way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import httpx2
import structlog
from redis.exceptions import RedisError

from mesh import Member, Missing
from quart_app.grades.backup import BackupReader, BadBackup, Header
from quart_app.grades.known_state import KnownState
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.settings import GradesSettings
from quart_app.grades.storage import Storage

log = structlog.get_logger(__name__)

#: The most bytes that are read at once. The reader takes each piece in a thread, so smaller pieces take more time.
#: Larger ones take more memory.
CHUNK_BYTES = 1 << 16

#: Checks the header of a backup; raises BadBackup if the caller cannot use the state.
AcceptHeader = Callable[[Header], Awaitable[None]]


class Source(Protocol):
    """Something that may have a backup. `open` raises NoBackup, OSError, httpx2.HTTPError or httpx2.InvalidURL."""

    #: for a label of the metrics: `disk` or `peer`
    kind: str
    #: for the log
    name: str
    #: whether the log is not founded again while there is this source: a replica that says its grades are ready, or one
    #: that is expected back
    blocks_founding: bool

    def open(self) -> contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class NoBackup(Exception):
    """The source has no backup to give now."""


class SnapshotFile:
    """A snapshot on disk."""

    kind = "disk"
    blocks_founding = False

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[bytes]]:
        with await asyncio.to_thread(open, self._path, "rb") as file:

            async def chunks() -> AsyncIterator[bytes]:
                while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield chunk

            yield chunks()


class Peer:
    """Another replica, reached at its private port: `address` is host:port."""

    kind = "peer"

    def __init__(self, address: str, blocks_founding: bool, settings: GradesSettings) -> None:
        self.name = address
        self.blocks_founding = blocks_founding
        self._settings = settings

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[bytes]]:
        settings = self._settings
        auth = httpx2.BasicAuth(settings.username, settings.password.get_secret_value())
        # Peers are reached directly, never through a proxy that the environment names.
        async with httpx2.AsyncClient(auth=auth, timeout=settings.peer_timeout_s, trust_env=False) as client:
            async with client.stream("GET", f"http://{self.name}/backup") as response:
                if response.status_code != 200:
                    raise NoBackup(f"the peer answered {response.status_code}")
                yield response.aiter_raw(CHUNK_BYTES)


class Absent:
    """A replica that is expected back. The log is not founded again, because this replica may have the only state."""

    kind = "peer"
    blocks_founding = True

    def __init__(self, database: int) -> None:
        self.name = f"database {database}"

    def open(self) -> contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise NoBackup("the replica is away, and is expected back")


#: The errors of a source after which the next source is tried; InvalidURL, because the roster may have a bad address.
FAILURES = (BadBackup, NoBackup, httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError)


async def peer_sources(
    read_roster: Callable[[], Awaitable[Sequence[Member]]],
    read_missing: Callable[[], Awaitable[Sequence[Missing]]],
    own_replica: str,
    settings: GradesSettings,
) -> list[Source]:
    """Return the other live replicas, ready ones first; among equally ready ones those with ready grades come first.

    The rest of their order is random, so that not all restoring replicas ask the same one. Last come the replicas that
    are expected back.
    """
    other_members = [member for member in await read_roster() if member.replica != own_replica]
    reachable_members = [member for member in other_members if member.leased and member.private]
    random.shuffle(reachable_members)
    reachable_members.sort(key=lambda member: (member.state != "ready", "grades" in member.not_ready))
    live: list[Source] = [
        Peer(member.private, member.state == "ready" and "grades" not in member.not_ready, settings)
        for member in reachable_members
    ]
    # The roster row of a replica outlives its lease for some seconds. After that, the database counts as missing, with
    # its class while the replica is expected back.
    absent = {member.database for member in other_members if not member.leased and member.state != "left"}
    try:
        absent |= {missing.database for missing in await read_missing() if missing.cls}
    except RedisError as error:
        # Somebody has overwritten a key. A backup of a live replica is still good.
        log.warning("nobody knows which replicas are expected back", reason=str(error))
        absent |= {-1}  # stands for a replica that may be expected back, so that the log is not founded again
    return live + [Absent(database) for database in sorted(absent)]


async def first_good(
    sources: Sequence[Source], settings: GradesSettings, metrics: GradesMetrics, accept: AcceptHeader
) -> KnownState | None:
    """Return the state of the first source whose backup is valid and whose header `accept` accepts, or None."""
    for source in sources:
        try:
            header, storage = await load(source, settings, accept)
        except FAILURES as error:
            is_bad = isinstance(error, BadBackup)
            metrics.restores.labels(source.kind, "refused" if is_bad else "unavailable").inc()
            log_at_level = log.error if is_bad else log.debug  # a replica that cannot be reached is nothing unusual
            log_at_level("source not used", source=source.name, reason=str(error) or type(error).__name__)
            continue
        metrics.restores.labels(source.kind, "done").inc()
        log.info("grades restored", source=source.name, records=header.count, number=header.number)
        return KnownState(storage, header.position, header.continues)
    return None


async def load(source: Source, settings: GradesSettings, accept: AcceptHeader) -> tuple[Header, Storage]:
    """Return the whole, verified state of a source. `accept` checks the header before the rest is read.

    Raises BadBackup, NoBackup, TimeoutError, and what opening the source raises.
    """
    reader = BackupReader(settings.backup_max_records)
    header_accepted = False
    try:
        async with asyncio.timeout(settings.backup_timeout_s), source.open() as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(reader.feed, chunk)
                if reader.header is not None and not header_accepted:
                    await accept(reader.header)
                    header_accepted = True
        return await asyncio.to_thread(reader.result)
    # Catches a cancellation, too. Freeing many records here would hold the event loop, so a thread frees them.
    except BaseException:
        await asyncio.to_thread(reader.free)
        raise
