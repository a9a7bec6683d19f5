"""Leased databases, requests with exactly one effect, gathers that know who must answer: over Redis, without HTTP.

For programs beside a mesh, `read_roster` and `read_missing` read over a client of redis-py; members ask their `Mesh`.
The module `failures` says what an error of Redis means, and `tracing` which call the current task works for.
`pauses` yields the waits of a backoff; the error `Paused` is about an operation that an operator has paused.
"""

from mesh.errors import (
    Busy,
    Cancelled,
    Contended,
    DeadlineExceeded,
    GivenUp,
    GuardTooLarge,
    Incomplete,
    InvalidBody,
    InvalidReply,
    IsolationUnavailable,
    KeyReused,
    LeaseLost,
    Limited,
    ManyParts,
    MeshError,
    NoReplica,
    OlderRelease,
    Paused,
    ReadAfterWrite,
    Refused,
    ServerTooOld,
    SetupError,
    Unavailable,
    Unserved,
    UsageError,
    WrongCredentials,
)
from mesh.later.due import Ticket
from mesh.later.limit import Limit
from mesh.later.retry import Retry
from mesh.later.schedule import Tick
from mesh.lease.applicant import Applicant
from mesh.operations.calling import Caller
from mesh.operations.membership import Mesh, join
from mesh.operations.operation import Operation
from mesh.operations.reads import Query, Reads
from mesh.operations.state import Field, Hash, Key, Readable, Set, SortedSet, Values
from mesh.operations.table import Operations
from mesh.operations.transaction import Transaction
from mesh.operations.visit import MeshClient, connect
from mesh.requests import tracing
from mesh.requests.answers import Replies
from mesh.requests.durations import BOUNDS_S, Durations
from mesh.requests.protocol import Address, Class, Database
from mesh.roster import Classes, Member, Missing
from mesh.roster import read_directly as read_roster
from mesh.roster import read_missing_directly as read_missing
from mesh.settings import SECRETS_DIR, Isolation, MeshSettings, RedisSettings, explain, settings_config
from mesh.wire import failures
from mesh.wire.backoff import pauses
from mesh.wire.clients import Connections
from mesh.wire.script import Script

__all__ = [
    "BOUNDS_S",
    "SECRETS_DIR",
    "Address",
    "Applicant",
    "Busy",
    "Caller",
    "Cancelled",
    "Class",
    "Classes",
    "Connections",
    "Contended",
    "Database",
    "DeadlineExceeded",
    "Durations",
    "Field",
    "GivenUp",
    "GuardTooLarge",
    "Hash",
    "Incomplete",
    "InvalidBody",
    "InvalidReply",
    "Isolation",
    "IsolationUnavailable",
    "Key",
    "KeyReused",
    "LeaseLost",
    "Limit",
    "Limited",
    "ManyParts",
    "Member",
    "Mesh",
    "MeshClient",
    "MeshError",
    "MeshSettings",
    "Missing",
    "NoReplica",
    "OlderRelease",
    "Operation",
    "Operations",
    "Paused",
    "Query",
    "ReadAfterWrite",
    "Readable",
    "Reads",
    "RedisSettings",
    "Refused",
    "Replies",
    "Retry",
    "Script",
    "ServerTooOld",
    "Set",
    "SetupError",
    "SortedSet",
    "Tick",
    "Ticket",
    "Transaction",
    "Unavailable",
    "Unserved",
    "UsageError",
    "Values",
    "WrongCredentials",
    "connect",
    "explain",
    "failures",
    "join",
    "pauses",
    "read_missing",
    "read_roster",
    "settings_config",
    "tracing",
]
