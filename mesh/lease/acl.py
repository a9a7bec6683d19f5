"""The Redis user of one epoch: what the holder of a database may do, enforced by the server.

The rules start from nothing and allow the commands and keys that a replica uses. How they keep it in its two databases
depends on the server:

- Valkey 9.1 and later restrict a selector to one database (`db=3`). The user has one selector for the bus and one for
  its own database, so a key is only reachable where it belongs.
- Redis, and older Valkey, have no access rule per database. There the user may SELECT two databases only (a
  first-argument rule), has no command that reaches another database otherwise, and the key patterns hold in both. So
  such a user can write its own prefix in the bus database, where nobody reads it.

Deleting the user of the former epoch cuts its connections: that is the fence.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NoReturn

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import keys
from mesh.errors import IsolationUnavailable
from mesh.wire import failures
from mesh.wire.clients import Credentials
from mesh.wire.failures import Meaning

#: What a connection needs to begin and to end, in whatever database it is.
CONNECTION = "+auth +hello +ping +reset +quit +time +wait +info +client|setname +client|id"

COMMANDS = (
    "+@string +@hash +@list +@set +@sortedset +@stream +@transaction -sort -sort_ro"
    " +del +unlink +exists +type +expire +pexpire +expireat +pexpireat +expiretime +pexpiretime +ttl +pttl +persist"
    " +getbit +bitfield +bitcount +eval +evalsha +eval_ro +evalsha_ro +script|load +script|exists"
)

#: Commands that only later servers know; naming them to 7.0 is an error.
SINCE_7_2 = "+client|setinfo +waitaof"

#: A user that exists only while we ask the server which rules it knows. It is off and may do nothing.
PROBE = "mesh-probe"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which rules a server knows."""

    #: selectors restricted to databases: `(... db=3)`
    databases: bool
    #: the commands of 7.2
    since_7_2: bool


def username(database: int, bus: int = 0) -> str:
    """Return the name of the user that holds this database; its password is new with every epoch.

    A mesh with another bus has other names, so that two meshes never delete each other's users.
    """
    return f"mesh{bus or ''}-db{database}"


def new_credentials(database: int, bus: int) -> Credentials:
    """Return a user for the next epoch, with a password that only this process knows."""
    return Credentials(username(database, bus), secrets.token_urlsafe(32))


def rules(database: int, bus: int, password: str, dialect: Dialect) -> list[str]:
    """The words of ACL SETUSER after the user's name."""
    words = ["reset", "on", f">{password}", "resetchannels", "-@all", *CONNECTION.split()]
    if dialect.since_7_2:
        words += SINCE_7_2.split()
    own, shared = [f"~{keys.own(database)}*"], _shared_patterns(database)
    if not dialect.databases:
        words += COMMANDS.split()
        words += [f"+select|{number}" for number in sorted({bus, database})]
        return words + own + shared
    if database == bus:
        return [*words, _selector(bus, own + shared)]
    return [*words, _selector(bus, shared), _selector(database, own)]


def _selector(database: int, patterns: list[str]) -> str:
    """The commands on these keys in this database; SELECT is checked against the database that it goes to."""
    return f"(-@all {COMMANDS} +select {' '.join(patterns)} db={database})"


def _shared_patterns(database: int) -> list[str]:
    """The keys of the bus database that the holder of this database uses.

    The server compares each key of a command with one pattern after the other. So those that every call needs come
    first: as the last ones they cost it 3 µs more.
    """
    every_call = [
        f"~{keys.REQUESTS}*",
        f"~{keys.BOOKS}",
        f"~{keys.lease(database)}",
        f"~{keys.SUBMITTED}*",
        f"~{keys.COMMITTED}*",
        f"~{keys.REPLIES}*",
        f"~{keys.CLOCK}",
        f"%R~{keys.ROWS}*",
    ]
    written = (
        f"{keys.SHARED}*",
        f"{keys.EVENTS}*",
        keys.DEAD,
        keys.AUDIT,
        keys.MINUTES,
        keys.PAUSED,
        f"{keys.PARKED}*",
        keys.LANES,
        f"{keys.LANE}*",
        f"{keys.RUNNING}*",
        f"{keys.RATE}*",
        f"{keys.DRAIN}*",
        f"{keys.LATER}*",
        f"{keys.ONCE}*",
        keys.SCHEDULES,
        f"{keys.SCHEDULE}*",
        keys.OPERATIONS,
        keys.SERVED,
        keys.row(database),
        keys.expected(database),
        keys.WRITTEN,
    )
    read = (f"{keys.LEASES}*", f"{keys.EXPECTED}*")
    return [*every_call, *(f"~{pattern}" for pattern in written), *(f"%R~{pattern}" for pattern in read)]


async def probe(client: Redis, version: tuple[int, ...]) -> Dialect:
    """Ask the server which rules it knows. Raises IsolationUnavailable where these credentials may not manage users."""
    # Not a transaction: Redis 7 queues no command when memory is full.
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("ACL", "SETUSER", PROBE, "reset", "off", "(db=0)")
        pipeline.execute_command("ACL", "DELUSER", PROBE)
        selectors, deleted = await pipeline.execute(raise_on_error=False)
    if isinstance(deleted, redis_errors.ResponseError):
        _refuse(deleted)
    return Dialect(
        databases=not isinstance(selectors, redis_errors.ResponseError),
        since_7_2=version >= (7, 2),
    )


def _refuse(error: redis_errors.ResponseError) -> NoReturn:
    if failures.classify(error) in {Meaning.PASSING, Meaning.FULL}:
        raise error
    raise IsolationUnavailable(
        f"these credentials may not manage Redis users ({error}); "
        "use credentials that may run ACL SETUSER and ACL DELUSER, or set MESH_ISOLATION=prefix to go on without"
    ) from error
