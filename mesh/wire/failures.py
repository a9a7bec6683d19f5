"""Every error that Redis or Valkey can answer, and what it means to a replica.

`CODES` and `PHRASES` are the table. A code is the first word of an error's text. The code `ERR` has many meanings, and
phrases in the text tell them apart. When a command in a script fails, Lua adds text at the end; the code stays first.
"""

from __future__ import annotations

import asyncio
import re
from enum import Enum

from redis import exceptions as redis_errors

from mesh.errors import LeaseLost, MeshError, SetupError, Unavailable, redis_is_full

#: The only eviction policy with which the server never deletes acknowledged data.
NO_EVICTION = "noeviction"


class Meaning(Enum):
    """What an error means to a replica."""

    #: Redis cannot run the command now. The command may be sent again until the lease ends; callers get 503.
    PASSING = "passing"
    #: The memory of Redis is full. New work is refused with 503; settlement, release and renewal go on.
    FULL = "full"
    #: The Redis user of this epoch is gone, or another replica holds the lease. The membership ends.
    FENCED = "fenced"
    #: The server does not know the script. Its sender loads it, and sends the command again.
    UNKNOWN_SCRIPT = "script"
    #: Somebody has overwritten a key with a value of another type. Callers get 503 until the key is repaired.
    OVERWRITTEN = "overwritten"
    #: Our own code has to deal with the error: the code sent a wrong command, or it expects this error and handles it.
    #: The command is not repeated.
    OURS = "ours"
    #: The mesh cannot work with this server. A replica that starts ends, and says why.
    FATAL = "fatal"


#: The code of an error -> what it means. First all codes of Redis 7.0 to 8 and Valkey 7.2 to 9.1, then the codes of
#: our scripts.
CODES: dict[str, Meaning] = {
    "LOADING": Meaning.PASSING,  # the server reads its data from disk
    "BUSY": Meaning.PASSING,  # somebody's script or module command runs for too long
    "MISCONF": Meaning.PASSING,  # the server cannot write to its disk, and refuses writes until it can
    "NOREPLICAS": Meaning.PASSING,  # fewer copies are connected than min-replicas-to-write
    "READONLY": Meaning.PASSING,  # the server is a copy now; after a failover its host name leads to the new master
    "MASTERDOWN": Meaning.PASSING,  # a copy has lost its master and does not serve stale data
    "REDIRECT": Meaning.PASSING,  # a copy of Valkey answers with the address of its primary
    "NOMASTERLINK": Meaning.PASSING,  # a copy has no connection to its master
    "UNBLOCKED": Meaning.PASSING,  # a blocked read was ended: CLIENT UNBLOCK, or the server became a copy
    "CLUSTERDOWN": Meaning.PASSING,  # a cluster cannot serve the key now
    "TRYAGAIN": Meaning.PASSING,  # a cluster is moving some of the keys
    "IOERR": Meaning.PASSING,  # the server could not reach another server
    "INPROG": Meaning.PASSING,  # a sentinel is in the middle of a failover
    "NOGOODSLAVE": Meaning.PASSING,  # a sentinel finds no copy that can become the master
    "NOQUORUM": Meaning.PASSING,  # too few sentinels can be reached
    "OOM": Meaning.FULL,
    # The next three: the Redis user of the lease was deleted, or has lost its rights.
    "NOAUTH": Meaning.FENCED,
    "WRONGPASS": Meaning.FENCED,
    "NOPERM": Meaning.FENCED,
    "NOSCRIPT": Meaning.UNKNOWN_SCRIPT,
    "NOGROUP": Meaning.OURS,  # the reader opens its stream again
    "BUSYGROUP": Meaning.OURS,  # the consumer group exists already
    "BUSYKEY": Meaning.OURS,  # the key exists already
    "WRONGTYPE": Meaning.OVERWRITTEN,
    "EXECABORT": Meaning.OURS,  # unless the text names the code of another error; see `code_of`
    "INVALIDOBJ": Meaning.OURS,
    "NOTBUSY": Meaning.OURS,  # no script runs that could be killed
    "UNKILLABLE": Meaning.OURS,  # the running script has written already
    "NOSUB": Meaning.OURS,
    "ERR": Meaning.OURS,  # unless the text has one of PHRASES
    # The next five: REMEDIES says what each is about.
    "DENIED": Meaning.FATAL,
    "NOPROTO": Meaning.FATAL,
    "MOVED": Meaning.FATAL,
    "ASK": Meaning.FATAL,
    "CROSSSLOT": Meaning.FATAL,
    "LEASEGONE": Meaning.PASSING,  # the lease's key is gone; the next renewal restores it, or the lease is lost
    "LEASELOST": Meaning.FENCED,
}

#: A part of an error's text -> what it means. This decides for the code ERR, and if `code_of` finds no code because
#: redis-py has changed the text.
PHRASES: dict[str, Meaning] = {
    "max number of clients": Meaning.PASSING,
    "server is shutting down": Meaning.PASSING,
    "Errors trying to SHUTDOWN": Meaning.PASSING,
    "command not allowed when used memory": Meaning.FULL,
    "without any password configured": Meaning.FATAL,
    "no password is set": Meaning.FATAL,
    "DB index is out of range": Meaning.FATAL,
    "SELECT is not allowed in cluster mode": Meaning.FATAL,
    "access a non local key in a cluster": Meaning.FATAL,
    "unknown command": Meaning.FATAL,
    "unknown subcommand": Meaning.FATAL,
}

#: The code or a phrase of an error that ends a starting replica -> what to do about it.
REMEDIES = {
    "DENIED": "set a password on the server and in REDIS_PASSWORD, or let the server listen on a loopback address only",
    "NOPROTO": "the server must speak RESP2",
    "MOVED": "the mesh needs one server with numbered databases, not a Redis Cluster",
    "ASK": "the mesh needs one server with numbered databases, not a Redis Cluster",
    "CROSSSLOT": "the mesh needs one server with numbered databases, not a Redis Cluster",
    "access a non local key in a cluster": "the mesh needs one server that is not in cluster mode (cluster-enabled no)",
    "SELECT is not allowed in cluster mode": "the mesh needs numbered databases, which a cluster does not have",
    "DB index is out of range": "REDIS_DB and MESH_DATABASES must fit the `databases` setting of the server",
    "without any password configured": "the server has no password for this user; check REDIS_PASSWORD",
    "no password is set": "the server has no password for this user; check REDIS_PASSWORD",
    "unknown command": "the server does not have this command, or it was renamed",
    "unknown subcommand": "the server does not have this command, or it was renamed",
}

#: The text of the error for `Meaning.OVERWRITTEN`. The server does not name the key: only the log tells what the
#: replica was doing.
OVERWRITTEN_TEXT = (
    "a key of the mesh was overwritten with a value of another type; delete it, or restore it from a backup"
)

#: The classes of errors whose meaning is `Meaning.PASSING`, for an `except` clause: Redis cannot be reached, or cannot
#: serve, for now.
PASSING = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    OSError,
    asyncio.TimeoutError,
)

#: All errors that a command to Redis can raise, for an `except` clause; `classify` then tells them apart.
ANY = (redis_errors.RedisError, *PASSING)

_FENCED_EXCEPTIONS = (
    redis_errors.AuthenticationError,
    redis_errors.AuthenticationWrongNumberOfArgsError,
    redis_errors.NoPermissionError,
)

#: The code at the start of an error's text, perhaps after the hyphen with which the server marks an error.
_CODE_PATTERN = re.compile(r"^-?([A-Z]{3,})(?: |$)")
#: What redis-py puts around the text of an error in a pipeline.
_PIPELINE_PATTERN = re.compile(r"Command # \d+ .* of pipeline caused error: \(?['\"]?(.*?)['\"]?,?\)?$", re.DOTALL)
#: The code of the error for which the server discarded a transaction, in the text of EXECABORT.
_ABORT_PATTERN = re.compile(r"discarded because of: (?:-)?([A-Z]{3,}) ")


def code_of(error: BaseException) -> str:
    """Return the code of an error that the server answered, or "" for an error of the connection."""
    # If redis-py knows an error, it removes the code from the text and keeps it in `status_code`.
    code, text = getattr(error, "status_code", None), text_of(error)
    if not code and (code_match := _CODE_PATTERN.match(text)):
        code = code_match[1]
    if code == "EXECABORT" and (code_match := _ABORT_PATTERN.search(text)):
        code = code_match[1]
    return str(code or "")


def text_of(error: BaseException) -> str:
    """Return what the server answered, without the command that redis-py puts in front of errors of a pipeline.

    If an error has no text, return the name of its class.
    """
    text = str(error)
    pipeline_match = _PIPELINE_PATTERN.match(text)
    return pipeline_match[1] if pipeline_match else text or type(error).__name__


def classify(error: BaseException) -> Meaning:
    """Return what an error of redis-py or of the network means."""
    if isinstance(error, Unavailable):  # the mesh has translated the error already
        return Meaning.PASSING
    code = code_of(error)
    # The code ERR says nothing by itself; only the text does. A code that CODES lacks, such as a module's, is OURS.
    if code not in {"", "ERR"} and code in CODES:
        return CODES[code]
    text = str(error)
    for phrase, meaning in PHRASES.items():
        if phrase in text:
            return meaning
    if isinstance(error, redis_errors.OutOfMemoryError):
        return Meaning.FULL
    # Before PASSING, because an AuthenticationError is a ConnectionError, too.
    if isinstance(error, _FENCED_EXCEPTIONS):
        return Meaning.FENCED
    return Meaning.PASSING if isinstance(error, PASSING) else Meaning.OURS


def is_fenced(error: BaseException) -> bool:
    """Whether an error ends the membership: the user of this epoch is gone, or another replica has the lease."""
    return classify(error) is Meaning.FENCED


def is_passing(error: BaseException) -> bool:
    """Whether the command that raised an error may succeed later."""
    return classify(error) is Meaning.PASSING


def eviction_refusal(policy: str) -> str:
    """Return why the mesh cannot work with this eviction policy."""
    return (
        f"the server's maxmemory-policy is {policy}: it would delete acknowledged data when memory is full; "
        f"set maxmemory-policy {NO_EVICTION}"
    )


def remedy(error: BaseException) -> str:
    """Return what to do about a fatal error (from REMEDIES), or "" if nothing is known."""
    code, text = code_of(error), str(error)
    return next(
        (advice for code_or_phrase, advice in REMEDIES.items() if code_or_phrase == code or code_or_phrase in text), ""
    )


def translate(error: BaseException) -> MeshError | None:
    """Return the MeshError that a caller gets for an error of Redis.

    Returns None if its meaning is OURS or UNKNOWN_SCRIPT.
    """
    match classify(error):
        case Meaning.PASSING:
            return Unavailable(f"Redis cannot be used now: {text_of(error)}", retry_after=1)
        case Meaning.FULL:
            return redis_is_full()
        case Meaning.OVERWRITTEN:
            # 5 s: a person must delete the key first, so an earlier retry would hardly succeed.
            return Unavailable(f"{OVERWRITTEN_TEXT}: {text_of(error)}", retry_after=5)
        case Meaning.FENCED:
            return LeaseLost("the Redis user of this lease was deleted")
        case Meaning.FATAL:
            advice = remedy(error)
            return SetupError(f"Redis refuses: {text_of(error)}" + (f"; {advice}" if advice else ""))
    return None
