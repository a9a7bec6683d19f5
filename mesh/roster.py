"""The roster: which replicas are live, each with its database and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh.wire.link import Link
from mesh.wire.script import Script

ROSTER = Script.beside(__file__, "roster.lua")
#: As many databases as any mesh may lease.
MOST_DATABASES = 16


@dataclass(frozen=True, slots=True)
class Member:
    """One row of the roster.

    `state` is starting, ready, draining or left. A row outlives its lease for a moment, so that others wait for the
    successor; `leased` says whether a replica holds the database now. `since` is in ms of Redis's clock, `public` and
    `private` are host:port.
    """

    database: int
    cls: str
    epoch: int
    replica: str
    pid: int
    public: str
    private: str
    state: str
    since: int
    version: str
    leased: bool
    #: services of a ready replica that answer 503 now
    not_ready: tuple[str, ...] = ()

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Member:
        """Read one row of the script's answer."""
        database, leased, *flat = row
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return cls(
            database=int(database),
            cls=fields.get("class", ""),
            epoch=int(fields.get("epoch", 0)),
            replica=fields.get("replica", ""),
            pid=int(fields.get("pid", 0)),
            public=fields.get("public", ""),
            private=fields.get("private", ""),
            state=fields.get("state", ""),
            since=int(fields.get("since", 0)),
            version=fields.get("version", ""),
            leased=bool(leased),
            not_ready=tuple(name for name in fields.get("not_ready", "").split(",") if name),
        )


async def read(link: Link, databases: int) -> list[Member]:
    """Return every row at one moment, over a replica's link."""
    return [Member.from_row(row) for row in await link.script(ROSTER, (), databases)]


async def read_directly(client: Redis, databases: int = MOST_DATABASES) -> list[Member]:
    """Return every row at one moment, over a client of the bus database that decodes answers.

    For whoever is no member: the commands of a shell, a supervisor. Raises redis-py's errors.
    """
    return [Member.from_row(row) for row in await ROSTER.run(client, (), databases)]
