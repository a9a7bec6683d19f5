"""Where a whole state can be had from: a peer's backup, a snapshot on disk. Both are read and judged
alike."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import httpx

from mesh import Member
from quart_app.grades.backup import BadBackup, Header, Reader
from quart_app.grades.settings import GradesSettings
from quart_app.grades.storage import Storage

CHUNK = 1 << 16


class Source(Protocol):
    """Something that may have a backup. `open` raises NoBackup, OSError or httpx.HTTPError."""

    kind: str
    name: str

    def open(self) -> contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class NoBackup(Exception):
    """This source has no backup to give just now."""


class File:
    """A snapshot on disk."""

    kind = "disk"

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[bytes]]:
        with await asyncio.to_thread(open, self._path, "rb") as file:

            async def chunks() -> AsyncIterator[bytes]:
                while chunk := await asyncio.to_thread(file.read, CHUNK):
                    yield chunk

            yield chunks()


class Peer:
    """Another replica, asked over its private port."""

    kind = "peer"

    def __init__(self, address: str, settings: GradesSettings) -> None:
        self.name = address
        self._settings = settings

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[bytes]]:
        settings = self._settings
        auth = httpx.BasicAuth(settings.username, settings.password.get_secret_value())
        # Peers are neighbours: no proxy from the environment stands between.
        async with httpx.AsyncClient(auth=auth, timeout=settings.peer_timeout_s, trust_env=False) as client:
            async with client.stream("GET", f"http://{self.name}/backup") as response:
                if response.status_code != 200:
                    raise NoBackup(f"it answered {response.status_code}")
                yield response.aiter_raw(CHUNK)


async def peers(roster: Callable[[], Awaitable[Sequence[Member]]], own: str, settings: GradesSettings) -> list[Source]:
    """The other live replicas, whoever they are: those that are ready first, else in any order."""
    others = [member for member in await roster() if member.replica != own]
    members = [member for member in others if member.leased and member.private]
    random.shuffle(members)
    members.sort(key=lambda member: member.state != "ready")
    return [Peer(member.private, settings) for member in members]


async def load(
    source: Source, settings: GradesSettings, accept: Callable[[Header], Awaitable[None]]
) -> tuple[Header, Storage]:
    """The whole and verified state of a source.

    `accept` judges the header as soon as it is read and raises BadBackup where that state is of no use here.
    Raises BadBackup, NoBackup, and what opening raises; TimeoutError.
    """
    reader = Reader(settings.backup_max_records)
    accepted = False
    try:
        async with asyncio.timeout(settings.backup_timeout_s), source.open() as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(reader.feed, chunk)
                if reader.header is not None and not accepted:
                    await accept(reader.header)
                    accepted = True
        return await asyncio.to_thread(reader.result)
    except BaseException:
        await asyncio.to_thread(reader.give_up)
        raise


#: What a source may fail with; the next one is asked then.
FAILURES = (BadBackup, NoBackup, httpx.HTTPError, OSError, TimeoutError)
