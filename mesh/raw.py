"""The level below typed operations: named operations, bodies that are dicts, and writes by their Redis verbs.

`mesh.join` takes a `Worker` together with typed operations. `Mesh.replica` is a `Replica`, as `mesh.raw.join` yields
it. `mesh.raw.connect` yields a `Client`, which has no types either.
"""

from __future__ import annotations

from mesh.client import Client, connect
from mesh.replica import Replica, join
from mesh.requests.answers import Answer, Ask
from mesh.requests.effects import Effects
from mesh.requests.filters import Among, Filter, among
from mesh.requests.protocol import NEVER, Body, Request
from mesh.requests.store import Store
from mesh.requests.verbs import ServiceVerbs
from mesh.requests.worker import Worker
from mesh.wire.script import Script

__all__ = [
    "NEVER",
    "Among",
    "Answer",
    "Ask",
    "Body",
    "Client",
    "Effects",
    "Filter",
    "Replica",
    "Request",
    "Script",
    "ServiceVerbs",
    "Store",
    "Worker",
    "among",
    "connect",
    "join",
]
