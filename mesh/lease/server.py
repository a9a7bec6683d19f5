"""What a server must be like before a replica may take a lease on it."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from mesh import keys
from mesh.errors import MeshError, ServerTooOld, SetupError, Unavailable, WrongCredentials
from mesh.wire import failures
from mesh.wire.failures import Meaning

#: Our scripts begin with `#!lua flags=…`, which servers know from this version on.
MINIMUM_VERSION = (7, 0)
#: The format of what this release writes to Redis. Raise it if an older release would misread or hide the new data.
FORMAT = 1


async def check(client: Redis) -> tuple[int, ...]:
    """Check the server's version and eviction policy, and return the version.

    Raises WrongCredentials, ServerTooOld, SetupError, or Unavailable.
    """
    try:
        info = await client.info()
    except failures.ANY as error:
        raise to_mesh_error(error) from error
    version_text = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in version_text.split(".")[:3])  # "7.2.4": major, minor and patch
    if version < MINIMUM_VERSION:
        raise ServerTooOld(f"the server is {version_text}; the mesh needs 7.0 or later")
    # A server that does not tell its policy counts as one that evicts no keys.
    policy = str(info.get("maxmemory_policy", failures.NO_EVICTION))
    if policy != failures.NO_EVICTION:
        raise SetupError(failures.eviction_refusal(policy))
    return version


def check_claim(claim: str, our_claim: str) -> None:
    """Raise SetupError if another mesh uses this server. A claim is "<name> <bus>", or "" if there is no mesh."""
    if claim in {"", our_claim}:
        return
    name, _, bus = claim.rpartition(" ")
    if not bus.isdecimal():
        raise SetupError(
            f"the key {keys.CLAIM} in database 0 has {claim!r:.100}, which no mesh writes; if no other mesh uses "
            "this server, delete the key"
        )
    raise SetupError(
        f"the mesh {name!r} uses this server, with its shared keys in database {bus}. Set MESH_NAME={name} and "
        f"REDIS_DB={bus} to join it, or use another server. If that mesh is gone for good, delete the key {keys.CLAIM} "
        "in database 0"
    )


def check_format(text: str, what: str) -> None:
    """Raise SetupError if a newer release has written data that this release may misread.

    `text` is the text of a key that has a format, or "". `what` completes the sentence "a newer release has written …",
    such as "to this mesh" or "database 3". Raises Unavailable if the text of `mesh:format` is not a number: a replica
    then waits until somebody has deleted the key. Callers never pass such a text of a database.
    """
    if text and not text.isdecimal():
        raise Unavailable(f"the key {keys.FORMAT} has {text!r:.100}, which is not a number; delete it")
    data_format = int(text or 0)
    if data_format > FORMAT:
        raise SetupError(
            f"a newer release has written {what} (format {data_format}, this release knows {FORMAT}); "
            "run that release or a later one"
        )


def to_mesh_error(error: BaseException) -> MeshError:
    """Return the error for a replica without a lease: Unavailable if waiting may help, else a SetupError."""
    code, text = failures.code_of(error), failures.text_of(error)
    match failures.classify(error):
        case Meaning.PASSING | Meaning.FULL:
            # An error with a code is an answer of Redis; one without a code is an error of the connection.
            return Unavailable(f"Redis cannot be {'used' if code else 'reached'}: {text}")
        case Meaning.OVERWRITTEN:
            return Unavailable(f"{failures.OVERWRITTEN_TEXT}: {text}")
        case Meaning.FENCED if code == "NOPERM" or isinstance(error, NoPermissionError):
            return SetupError(f"this Redis user lacks a right: {text}; grant it, or use other credentials")
        case Meaning.FENCED:
            return WrongCredentials(f"Redis refuses the user or the password: {text}")
    advice = failures.remedy(error)
    return SetupError(f"Redis refuses this replica: {text}" + (f"; {advice}" if advice else ""))
