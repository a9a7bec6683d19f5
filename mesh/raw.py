"""The level below typed operations: named operations, bodies that are dicts, and writes by their Redis verbs.

`quart_app` also finds here what it shares with the engine: failures of Redis, pauses after them, traces, the roster.

`mesh.join` takes a `Worker` beside typed operations, and `Mesh.replica` is the `Replica` that `join` here returns.
`connect` is without types, too: it yields a `Client`.
"""

from __future__ import annotations

from mesh import roster
from mesh.client import Client, connect
from mesh.replica import Replica, join
from mesh.requests import tracing
from mesh.requests.answers import Answer, Ask
from mesh.requests.durations import BOUNDS_S, Durations
from mesh.requests.effects import Effects
from mesh.requests.protocol import NEVER, Body, Request
from mesh.requests.store import Store
from mesh.requests.verbs import ServiceVerbs
from mesh.requests.worker import Worker
from mesh.wire import failures
from mesh.wire.backoff import pauses
from mesh.wire.failures import is_fenced
from mesh.wire.script import Script

__all__ = [
    "BOUNDS_S",
    "NEVER",
    "Answer",
    "Ask",
    "Body",
    "Client",
    "Durations",
    "Effects",
    "Replica",
    "Request",
    "Script",
    "ServiceVerbs",
    "Store",
    "Worker",
    "connect",
    "failures",
    "is_fenced",
    "join",
    "pauses",
    "roster",
    "tracing",
]
