"""Who is live, with which database and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.wire.clients import Link
from mesh.wire.script import Script

ROSTER = Script.beside(__file__, "roster.lua")


@dataclass(frozen=True, slots=True)
class Member:
    """One row of the roster.

    `state` is starting, ready, draining or left; one that left is waited for until its row expires. `leased` says
    whether somebody holds the database now. `since` is in ms of Redis's clock; public and private are host:port.
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

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Member:
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
        )


def members(rows: Sequence[Sequence[Any]]) -> list[Member]:
    """The script's answer, by database."""
    return [Member.from_row(row) for row in rows]


async def read(link: Link, databases: int) -> list[Member]:
    """Every row at this moment."""
    return members(await link.script(ROSTER, (), databases))
