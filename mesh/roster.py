"""The roster: which replicas are live, each with its database and class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from mesh import keys
from mesh.errors import MeshError, NoReplica, Unavailable
from mesh.wire.link import Link
from mesh.wire.script import Script

ROSTER = Script.beside(__file__, "roster.lua")
MISSING = Script.beside(__file__, "missing.lua")


#: When a refused client may try again. A replica that joins again does so within seconds.
RETRY_AFTER_S = 1


#: Fields of a row that are not part of `Member.load`: most of them have a place of their own in `Member`.
_OWN = {
    "class", "epoch", "replica", "pid", "public", "private", "state", "since", "version", "not_ready", "readers",
    "serves", "reads",
}  # fmt: skip


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
    #: operations of this replica that have no effect
    readers: frozenset[str] = frozenset()
    #: the digest of its table of operations, as `mesh:operations:served` has it
    serves: str = ""
    #: what the replica told of its work with its last renewal: answered, in_hand, p50_us, p99_us, loop_ms, and
    #: whatever its application adds
    load: Mapping[str, str] = field(default_factory=dict)

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
            readers=frozenset(fields.get("readers", "").split()),
            serves=fields.get("serves", ""),
            load={name: value for name, value in fields.items() if name not in _OWN},
        )


@dataclass(frozen=True, slots=True)
class Missing:
    """A database that is not live although it holds data, or although its holder is expected back.

    `cls` is its class while its holder is expected back, and "" afterwards.
    """

    database: int
    cls: str
    has_data: bool


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a mesh: those that have a live replica, and others whose holder is expected back."""

    live: frozenset[str]
    expected: frozenset[str]

    def absence(self, name: str) -> MeshError | None:
        """Return why requests to this class are refused; None if it is live."""
        return None if name in self.live else absence(name, expected=name in self.expected)


def name_of(target: str) -> str:
    """Return how an error calls a class ("A") or database ("db3")."""
    return f"database {target[2:]}" if target.startswith("db") else f"class {target}"


def absence(target: str, *, expected: bool) -> MeshError:
    """Return the error of a request to a class ("A") or database ("db3") that is not live."""
    name = name_of(target)
    if expected:
        return Unavailable(
            f"{name} has no replica at the moment, and its replica is expected back; retry after {RETRY_AFTER_S} s",
            retry_after=RETRY_AFTER_S,
            address=target,
        )
    return NoReplica(f"no live replica has {name}", address=target)


async def read(link: Link) -> list[Member]:
    """Return every row at one moment, over a replica's link."""
    return [Member.from_row(row) for row in await link.script(ROSTER, (), keys.MOST_DATABASES)]


async def read_directly(client: Redis) -> list[Member]:
    """Return every row at one moment, over a client of the bus database that decodes answers.

    This is for programs that are not members, such as commands and the supervisor. Raises redis-py's errors.
    """
    return [Member.from_row(row) for row in await ROSTER.run(client, (), keys.MOST_DATABASES)]


async def read_missing(link: Link) -> list[Missing]:
    """Return the databases that are missing at one moment, over a replica's link."""
    found = await link.script(MISSING, (keys.WRITTEN,), keys.MOST_DATABASES)
    return [_missing(row) for row in found]


async def read_missing_directly(client: Redis) -> list[Missing]:
    """Return the databases that are missing at one moment, as `read_directly` reads the roster."""
    found = await MISSING.run(client, (keys.WRITTEN,), keys.MOST_DATABASES)
    return [_missing(row) for row in found]


def _missing(row: Sequence[Any]) -> Missing:
    database, cls, has_data = row
    return Missing(int(database), str(cls), bool(has_data))
