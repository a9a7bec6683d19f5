"""The operations of a replica: a table from their names to their handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh.later.limit import Limit
from mesh.later.retry import Retry
from mesh.later.schedule import Schedule
from mesh.requests.effects import Effects
from mesh.requests.protocol import Decode, Request, decode_object
from mesh.requests.store import Store
from mesh.requests.verbs import VERBS, ServiceVerbs, Verb
from mesh.wire.codec import encode
from mesh.wire.script import Script

#: Handles one request. Gets the request, a reader of the replica's keys and the shared ones, and the transaction.
#: Returns the body of the reply, as `Handler` says.
HandlerFunction = Callable[[Request, Store, Effects], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Handler:
    """One operation and its handler, which is the function `handle`. Without an effect it only reads.

    The requests on a database's stream run one after the other, but neighbours without an effect run side by side.
    `decode` reads the body of a request. `encode` makes JSON of what `handle` returns; without `encode`, `handle`
    returns a dict or None. `define` returns the description of the operation that the key `mesh:operations` gets.
    """

    op: str
    handle: HandlerFunction
    has_effect: bool
    decode: Decode = decode_object
    encode: Callable[[Any], bytes] | None = None
    retry: Retry | None = None
    limit: Limit | None = None
    define: Callable[[], Mapping[str, Any]] | None = None


class Worker:
    """The table of operations of a replica. It runs nothing itself: `Runner` runs the handlers.

    worker = Worker()

    @worker.handles("greetings.put")
    async def put(request, store, transaction):
        transaction.set("greetings:last", request.body["text"])
        return {"stored": True}
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        #: scripts that handlers read with
        self.scripts: list[Script] = []
        #: the verbs of transactions, by name
        self.verbs: dict[str, Verb] = dict(VERBS)
        #: the Lua of the verbs that services have added
        self.fragments: list[str] = []
        #: by operation: when it runs by itself
        self.schedules: dict[str, Schedule] = {}

    def handles(self, op: str, *, effect: bool = True) -> Callable[[HandlerFunction], HandlerFunction]:
        """Return a decorator that registers a handler. `effect=False`: it only reads.

        The handler returns the body of the reply. If the handler raises a MeshError, the caller gets this error.
        """

        def register(handle: HandlerFunction) -> HandlerFunction:
            self.add(Handler(op, handle, effect))
            return handle

        return register

    def uses(self, script: Script) -> None:
        """Name a script with which handlers read, so that the server knows it before they run."""
        self.scripts.append(script)

    def writes_with(self, added: ServiceVerbs) -> None:
        """Add verbs with which handlers write. Raises ValueError for a name that is taken."""
        self._add_verbs(added.table(), [added.lua])

    def _add_verbs(self, table: Mapping[str, Verb], fragments: list[str]) -> None:
        if taken_names := self.verbs.keys() & table.keys():
            raise ValueError(f"the verbs {sorted(taken_names)} are there already")
        self.verbs |= table
        self.fragments += fragments

    def include(self, other: Worker) -> None:
        """Take over another table's operations, scripts, schedules and verbs.

        Raises ValueError if an operation or a verb is there already.
        """
        for handler in other._handlers.values():
            self.add(handler)
        self.scripts += other.scripts
        self.schedules |= other.schedules
        # Each table has the verbs of VERBS, so only the others are new.
        self._add_verbs({name: verb for name, verb in other.verbs.items() if name not in VERBS}, other.fragments)

    def add(self, handler: Handler) -> None:
        """Register a handler. Raises ValueError if its operation has one already."""
        if handler.op in self._handlers:
            raise ValueError(f"{handler.op} has a handler already")
        self._handlers[handler.op] = handler

    def handler(self, op: str) -> Handler | None:
        return self._handlers.get(op)

    @property
    def readers(self) -> frozenset[str]:
        """The names of the operations that only read; they are no readers of streams."""
        return frozenset(op for op, handler in self._handlers.items() if not handler.has_effect)

    def definitions(self, version: str) -> dict[str, str]:
        """Return what `mesh:operations` says of each operation: JSON by name. `version`: the program's version."""
        return {name: encode(_definition(handler, version)) for name, handler in self._handlers.items()}

    @property
    def operations(self) -> list[str]:
        """The names of all operations."""
        return sorted(self._handlers)


def _definition(handler: Handler, version: str) -> dict[str, Any]:
    """Return the definition of a handler's operation, as `mesh:operations` stores it."""
    service, dot, _ = handler.op.partition(".")
    definition: dict[str, Any] = {"kind": "command" if handler.has_effect else "query", "version": version}
    if handler.limit is not None:
        definition["limit"] = str(handler.limit)
    if handler.define is not None:
        return {**definition, **handler.define()}
    # A handler that was registered with `Worker.handles` has no types: its bodies and replies are any objects.
    any_object = {"type": "object"}  # the JSON schema of any object
    return {
        **definition,
        "service": service if dot else "",
        "summary": "",
        "request": any_object,
        "reply": any_object,
        "errors": {},
    }
