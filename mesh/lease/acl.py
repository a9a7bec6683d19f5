"""The Redis user of one epoch: which commands and keys the server allows to the holder of a database.

A new user may do nothing; the rules then allow the commands and keys that a replica uses. A replica uses two databases,
the bus and its own. How the rules keep it out of all others depends on the server:

- In Valkey 9.1 and later a rule can be for one database (a selector with `db=3`). The user has one selector for the bus
  and one for its own database. So the user reaches each key only in the database where the key belongs.
- Redis and older releases of Valkey have no rules per database. There a rule about the first argument of SELECT names
  the two databases, and no other allowed command reaches a third one. The key patterns hold in both databases. So the
  user can also write keys with its own prefix into the bus database, where no replica reads them.

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

#: Commands that a connection needs in any database: to log in, to ask about the server, to wait for copies, to end.
CONNECTION_COMMANDS = "+auth +hello +ping +reset +quit +time +wait +info +client|setname +client|id"

#: Commands on keys, which replicas and their services use. SORT is left out: no replica needs it, and its options BY
#: and GET read keys that are no arguments of the command.
KEY_COMMANDS = (
    "+@string +@hash +@list +@set +@sortedset +@stream +@transaction -sort -sort_ro"
    " +del +unlink +exists +type +expire +pexpire +expireat +pexpireat +expiretime +pexpiretime +ttl +pttl +persist"
    " +getbit +bitfield +bitcount +eval +evalsha +eval_ro +evalsha_ro +script|load +script|exists"
)

#: Commands that servers know since 7.2; an earlier server refuses rules that name them.
COMMANDS_SINCE_7_2 = "+client|setinfo +waitaof"

#: A Redis user that `find_dialect` makes and deletes, to learn which rules the server knows. It is off and may do
#: nothing.
TRIAL_USER = "mesh-probe"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which access rules a server knows."""

    #: whether it knows selectors for one database: `(... db=3)`
    has_database_rules: bool
    #: whether it knows the commands that 7.2 added
    knows_7_2_commands: bool


def username(database: int, bus: int = 0) -> str:
    """Return the name of the Redis user for the holder of this database; `bus` is the number of the bus database.

    Each epoch has a new password. In a mesh with another bus the names are different, so two meshes on one server never
    delete each other's users.
    """
    return f"mesh{bus or ''}-db{database}"


def new_credentials(database: int, bus: int) -> Credentials:
    """Return a user for the next epoch, with a random password that only this process knows."""
    return Credentials(username(database, bus), secrets.token_urlsafe(32))


def rules(database: int, bus: int, password: str, dialect: Dialect) -> list[str]:
    """Return the arguments of ACL SETUSER that follow the user's name, for the holder of this database."""
    arguments = ["reset", "on", f">{password}", "resetchannels", "-@all", *CONNECTION_COMMANDS.split()]
    if dialect.knows_7_2_commands:
        arguments += COMMANDS_SINCE_7_2.split()
    # ~ in a rule allows reads and writes of the keys that match, %R~ only reads.
    own_patterns, bus_patterns = [f"~{keys.own(database)}*"], _bus_patterns(database)
    if not dialect.has_database_rules:
        arguments += KEY_COMMANDS.split()
        arguments += [f"+select|{number}" for number in sorted({bus, database})]
        return arguments + own_patterns + bus_patterns
    if database == bus:
        return [*arguments, _selector(bus, own_patterns + bus_patterns)]
    return [*arguments, _selector(bus, bus_patterns), _selector(database, own_patterns)]


def _selector(database: int, patterns: list[str]) -> str:
    """Return the rule that allows KEY_COMMANDS on these keys in one database.

    It allows SELECT, too: the server checks a SELECT against the database that it changes to.
    """
    return f"(-@all {KEY_COMMANDS} +select {' '.join(patterns)} db={database})"


def _bus_patterns(database: int) -> list[str]:
    """Return the patterns of the keys in the bus database that the holder of this database uses.

    The server compares each key of a command with one pattern after the other. So the patterns for keys that every call
    uses come first: if they come last, a call costs the server 3 µs more.
    """
    used_by_every_call = [
        f"~{keys.REQUESTS}*",
        f"~{keys.BOOKS}",
        f"~{keys.lease(database)}",
        f"~{keys.SUBMITTED}*",
        f"~{keys.COMMITTED}*",
        f"~{keys.REPLIES}*",
        f"~{keys.CLOCK}",
        f"%R~{keys.ROWS}*",
    ]
    read_and_written = (
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
    only_read = (f"{keys.LEASES}*", f"{keys.EXPECTED}*")
    return [
        *used_by_every_call,
        *(f"~{pattern}" for pattern in read_and_written),
        *(f"%R~{pattern}" for pattern in only_read),
    ]


async def find_dialect(client: Redis, version: tuple[int, ...]) -> Dialect:
    """Find out which rules the server knows. Raises IsolationUnavailable if these credentials may not manage users."""
    # These commands are not a transaction, because Redis 7 allows none when its memory is full.
    async with client.pipeline(transaction=False) as pipeline:
        # A server without selectors for one database refuses "(db=0)". DELUSER runs even then: only its own refusal
        # shows that these credentials may not manage users. With `raise_on_error=False`, a refusal is an answer.
        pipeline.execute_command("ACL", "SETUSER", TRIAL_USER, "reset", "off", "(db=0)")
        pipeline.execute_command("ACL", "DELUSER", TRIAL_USER)
        answer_to_setuser, answer_to_deluser = await pipeline.execute(raise_on_error=False)
    if isinstance(answer_to_deluser, redis_errors.ResponseError):
        _raise_refusal(answer_to_deluser)
    return Dialect(
        has_database_rules=not isinstance(answer_to_setuser, redis_errors.ResponseError),
        knows_7_2_commands=version >= (7, 2),
    )


def _raise_refusal(error: redis_errors.ResponseError) -> NoReturn:
    """Raise the error with which the server answered `find_dialect`, if the reason may pass by itself.

    If the reason lasts, no later try can succeed: then raise IsolationUnavailable.
    """
    if failures.classify(error) in {Meaning.PASSING, Meaning.FULL}:
        raise error
    raise IsolationUnavailable(
        f"these credentials may not manage Redis users ({error}); "
        "use credentials that may run ACL SETUSER and ACL DELUSER, or set MESH_ISOLATION=prefix to go on without"
    ) from error
