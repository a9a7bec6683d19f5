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

READ_ROSTER = Script.beside(__file__, "roster.lua")
READ_MISSING = Script.beside(__file__, "missing.lua")

#: How many seconds a caller should wait whose request needs a replica that is away and expected back. A longer time
#: holds up callers whose replica is back already; a shorter one brings more requests that are refused again.
RETRY_AFTER_S = 1

#: Fields of a row that are not part of `Member.load`. Each is an attribute of `Member`, except for `reads`, the highest
#: level of options that the replica knows: only scripts read this field.
_FIELDS_BESIDE_LOAD = {
    "class", "epoch", "replica", "pid", "public", "private", "state", "since", "version", "not_ready", "readers",
    "serves", "reads",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One row of the roster.

    `replica` is the name of the replica, and `state` is starting, ready, draining or left. A row stays for a third of
    the lease's time after the lease has ended, so that requests wait for the next holder. `leased` says whether a
    replica holds the database now. `since` is when the lease was granted, in ms of Redis's clock. `public` and
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
    #: names of the services that answer 503 although the replica is ready
    not_ready: tuple[str, ...] = ()
    #: names of this replica's operations that only read
    readers: frozenset[str] = frozenset()
    #: digest of the list of its operations; `mesh:operations:served` has the list under this digest
    serves: str = ""
    #: what the replica wrote about its work at its last renewal: answered, in_hand, p50_us, p99_us, loop_ms, and the
    #: fields that its application adds
    load: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Member:
        """Return the member for one row of the answer of roster.lua."""
        database, leased, *names_and_values = row
        fields = dict(zip(names_and_values[::2], names_and_values[1::2], strict=True))
        return cls(
            database=int(database),
            cls=fields.get("class", ""),
            epoch=_number(fields.get("epoch")),
            replica=fields.get("replica", ""),
            pid=_number(fields.get("pid")),
            public=fields.get("public", ""),
            private=fields.get("private", ""),
            state=fields.get("state", ""),
            since=_number(fields.get("since")),
            version=fields.get("version", ""),
            leased=bool(leased),
            not_ready=tuple(name for name in fields.get("not_ready", "").split(",") if name),
            readers=frozenset(fields.get("readers", "").split()),
            serves=fields.get("serves", ""),
            load={name: value for name, value in fields.items() if name not in _FIELDS_BESIDE_LOAD},
        )


def _number(text: str | None) -> int:
    """Return the number in a field; 0 if the field is missing, or if somebody has written another text into it.

    The numbers of the mesh have fewer than 20 digits. `int` raises an error for a text of some thousand digits.
    """
    return int(text) if text and text.isdecimal() and len(text) < 20 else 0


@dataclass(frozen=True, slots=True)
class Missing:
    """A database that is not live although it holds data, or although its holder is expected back.

    `cls` is the class of the database while its holder is expected back, and "" afterwards.
    """

    database: int
    cls: str
    has_data: bool


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a mesh that have a live replica (`live`), and those whose only replica is expected back."""

    live: frozenset[str]
    #: away at the moment, and expected back
    expected: frozenset[str]

    def absence(self, name: str) -> MeshError | None:
        """Return the error of a request to the class `name` while no replica of it is live; None if one is live."""
        return None if name in self.live else absence_error(name, is_expected_back=name in self.expected)


def name_of(address: str) -> str:
    """Return how the text of an error names an address, which is a class ("A") or a database ("db3")."""
    return f"database {address[2:]}" if address.startswith("db") else f"class {address}"


def absence_error(address: str, *, is_expected_back: bool) -> MeshError:
    """Return the error of a request to an address, such as "A" or "db3", that is not live."""
    name = name_of(address)
    if is_expected_back:
        return Unavailable(
            f"{name} has no replica at the moment, and its replica is expected back; retry after {RETRY_AFTER_S} s",
            retry_after=RETRY_AFTER_S,
            address=address,
        )
    return NoReplica(f"no live replica has {name}", address=address)


async def read(link: Link) -> list[Member]:
    """Return all rows of the roster at one moment, read over a link."""
    return [Member.from_row(row) for row in await link.script(READ_ROSTER, (), keys.MOST_DATABASES)]


async def read_directly(client: Redis) -> list[Member]:
    """Return all rows of the roster at one moment, read over a redis-py client of the bus database, without a link.

    This is for programs that are not members, such as commands and the supervisor: only members and clients of the mesh
    have a link. The client has `decode_responses`. Raises redis-py's errors.
    """
    return [Member.from_row(row) for row in await READ_ROSTER.run(client, (), keys.MOST_DATABASES)]


async def read_missing(link: Link) -> list[Missing]:
    """Return the databases that are missing at one moment, read over a link."""
    raw_rows = await link.script(READ_MISSING, (keys.WRITTEN,), keys.MOST_DATABASES)
    return [_missing_from_row(row) for row in raw_rows]


async def read_missing_directly(client: Redis) -> list[Missing]:
    """Return the databases that are missing at one moment, read over a redis-py client as in `read_directly`."""
    raw_rows = await READ_MISSING.run(client, (keys.WRITTEN,), keys.MOST_DATABASES)
    return [_missing_from_row(row) for row in raw_rows]


def _missing_from_row(row: Sequence[Any]) -> Missing:
    database, cls, has_data = row
    return Missing(int(database), str(cls), bool(has_data))
