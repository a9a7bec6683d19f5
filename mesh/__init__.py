"""Leased databases, requests with exactly one effect, gathers that know who must answer: over Redis, without HTTP."""

from mesh.client import Client, connect
from mesh.errors import (
    Busy,
    Cancelled,
    Contended,
    DeadlineExceeded,
    GivenUp,
    Incomplete,
    InvalidBody,
    IsolationUnavailable,
    LeaseLost,
    MeshError,
    NoReplica,
    Refused,
    ServerTooOld,
    SetupError,
    Unavailable,
    WrongCredentials,
)
from mesh.replica import Replica, join
from mesh.requests.calls import Answer, Ask
from mesh.requests.protocol import Address, Body, Class, Database, Request
from mesh.requests.store import Store
from mesh.requests.transaction import Transaction
from mesh.requests.worker import Worker
from mesh.roster import Member
from mesh.settings import Isolation, MeshSettings, RedisSettings
from mesh.wire.clients import Connections

__all__ = [
    "Address",
    "Answer",
    "Ask",
    "Body",
    "Busy",
    "Cancelled",
    "Class",
    "Client",
    "Connections",
    "Contended",
    "Database",
    "DeadlineExceeded",
    "GivenUp",
    "Incomplete",
    "InvalidBody",
    "Isolation",
    "IsolationUnavailable",
    "LeaseLost",
    "Member",
    "MeshError",
    "MeshSettings",
    "NoReplica",
    "RedisSettings",
    "Refused",
    "Replica",
    "Request",
    "ServerTooOld",
    "SetupError",
    "Store",
    "Transaction",
    "Unavailable",
    "Worker",
    "WrongCredentials",
    "connect",
    "join",
]
