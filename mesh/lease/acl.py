"""The Redis user of one epoch: what the holder of a database may do, enforced by the server.

Redis has no access rule per database, so the rule is built from nothing up: SELECT of two numbers, key patterns, and
the commands we use. Deleting the former holder's user cuts its connections: that is the fence.
"""

from __future__ import annotations

import secrets

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import keys
from mesh.errors import IsolationUnavailable
from mesh.wire.clients import Credentials

COMMANDS = (
    "+auth +hello +ping +reset +quit +time +wait +client|setname +client|id"
    " +@string +@hash +@list +@set +@sortedset +@stream +@transaction -sort -sort_ro"
    " +del +unlink +exists +type +expire +pexpire +expireat +pexpireat +expiretime +pexpiretime +ttl +pttl +persist"
    " +eval +evalsha +eval_ro +evalsha_ro +script|load +script|exists"
)

#: Commands that only later servers know; naming them to 7.0 is an error.
SINCE_7_2 = "+client|setinfo +waitaof"


def username(database: int) -> str:
    """The user that a database's holder has; new with every epoch."""
    return f"mesh-db{database}"


def new_credentials(database: int) -> Credentials:
    """A user for the next epoch; its password is known to this process alone."""
    return Credentials(username(database), secrets.token_urlsafe(32))


def rules(database: int, bus: int, password: str, version: tuple[int, ...]) -> list[str]:
    """What ACL SETUSER is told."""
    words = ["reset", "on", f">{password}", "resetchannels", "-@all", *COMMANDS.split()]
    if version >= (7, 2):
        words += SINCE_7_2.split()
    words += [f"+select|{number}" for number in sorted({bus, database})]
    everything = (
        f"{keys.own(database)}*",
        f"{keys.SHARED}*",
        f"{keys.EVENTS}*",
        f"{keys.REQUESTS}*",
        f"{keys.REPLIES}*",
        f"{keys.SUBMITTED}*",
        f"{keys.COMMITTED}*",
        keys.DEAD,
        keys.BOOKS,
        keys.lease(database),
        keys.row(database),
    )
    words += [f"~{pattern}" for pattern in everything]
    words += [f"%R~{pattern}" for pattern in (f"{keys.LEASES}*", f"{keys.ROWS}*")]
    return words


async def check_enforceable(client: Redis) -> None:
    """Raises IsolationUnavailable where these credentials may not manage users."""
    try:
        await client.execute_command("ACL", "DELUSER", "mesh-probe")
    except redis_errors.ResponseError as error:
        raise IsolationUnavailable(
            f"these credentials may not manage Redis users ({error}); set MESH_ISOLATION=prefix to go on without"
        ) from error
