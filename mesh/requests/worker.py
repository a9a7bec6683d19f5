"""Which handler works off which operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.requests.protocol import Body, Request
from mesh.requests.store import Store
from mesh.requests.transaction import Transaction
from mesh.wire.script import Script

Handle = Callable[[Request, Store, Transaction], Awaitable[Body | None]]


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler. Without `effect` it only reads, so that neighbours on a database's stream may run beside it."""

    op: str
    handle: Handle
    effect: bool


class Worker:
    """A table of operations.

    worker = Worker()

    @worker.handles("greetings.put")
    async def put(request, store, transaction):
        transaction.set("greetings:last", request.body["text"])
        return {"stored": True}
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        #: scripts the handlers read with; known to the server before they run
        self.scripts: list[Script] = []

    def handles(self, op: str, *, effect: bool = True) -> Callable[[Handle], Handle]:
        """Register a handler. What it returns is the reply; a MeshError it raises is the reply's failure."""

        def register(handle: Handle) -> Handle:
            self._add(Handler(op, handle, effect))
            return handle

        return register

    def uses(self, script: Script) -> None:
        """Name a script that handlers read with."""
        self.scripts.append(script)

    def include(self, other: Worker) -> None:
        """Take over another table's operations."""
        for handler in other._handlers.values():
            self._add(handler)
        self.scripts += other.scripts

    def _add(self, handler: Handler) -> None:
        if handler.op in self._handlers:
            raise ValueError(f"{handler.op} has a handler already")
        self._handlers[handler.op] = handler

    def handler(self, op: str) -> Handler | None:
        return self._handlers.get(op)

    @property
    def operations(self) -> list[str]:
        return sorted(self._handlers)
