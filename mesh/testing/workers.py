"""Watched handlers: a `MeshKit` counts the runs of its replicas' handlers, and lets some of the runs fail.

`Operations` is a service's table of typed operations. `Worker` is the table of operations and handlers that a replica
gets; `mesh.raw` makes one directly.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from mesh.operations.membership import worker_of
from mesh.operations.operation import Operation
from mesh.operations.table import Operations
from mesh.requests.effects import Effects
from mesh.requests.protocol import Request
from mesh.requests.store import Store
from mesh.requests.worker import Handler, Worker
from mesh.wire.codec import decode


class LetFail(Exception):
    """A run of a handler that `MeshKit.fail` lets fail."""


class Runs:
    """How often the handler of each operation has run, and how many of its next runs are to fail."""

    def __init__(self) -> None:
        #: by operation
        self.run_counts: Counter[str] = Counter()
        self.runs_to_fail: Counter[str] = Counter()
        #: the operations that any replica of the kit serves, and those of them that have an effect
        self.known_operations: set[str] = set()
        self.operations_with_effect: set[str] = set()
        self._typed_operations: dict[str, Operation[Any, Any]] = {}

    def watched_worker(self, tables: Sequence[Operations | Worker]) -> Worker:
        """Return one table with the operations of all tables; runs of their handlers are counted here."""
        merged = WatchedWorker(self)
        merged.include(worker_of(tables))
        for table in tables:
            if isinstance(table, Operations):
                self._typed_operations |= table.operations
        return merged

    def body_of(self, op: str, text: str) -> Any:
        """Read the body of a request, as the type that its operation takes.

        If the operation has no types (`mesh.raw`), the body is read as JSON. If the body is of another type, the result
        is an InvalidBody: `decode_body` does not raise it.
        """
        operation = self._typed_operations.get(op)
        return decode(text) if operation is None else operation.decode_body(text)

    def reply_of(self, op: str, text: str) -> Any:
        """Read a reply, as the type that its operation returns.

        If the text is not of that type, or the operation has no types (`mesh.raw`), it is read as JSON. An error would
        end the replica that has made the commit, because the kit reads replies while the replica's trip goes on.
        """
        operation = self._typed_operations.get(op)
        with contextlib.suppress(ValueError):
            if operation is not None:
                return operation.decode_reply(text)
        return decode(text)

    def begin(self, op: str) -> None:
        """Count a run. Raises LetFail if this run is to fail."""
        self.run_counts[op] += 1
        if self.runs_to_fail[op] > 0:
            self.runs_to_fail[op] -= 1
            raise LetFail("the kit let it fail before its handler ran")


class WatchedWorker(Worker):
    """A table of operations whose runs are counted. `include` of the base class passes each handler to `add`."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self._runs = runs

    def add(self, handler: Handler) -> None:
        runs, handle, op = self._runs, handler.handle, handler.op

        def counted_handle(request: Request, store: Store, transaction: Effects) -> Awaitable[Any]:
            runs.begin(op)
            return handle(request, store, transaction)

        runs.known_operations.add(op)
        if handler.has_effect:
            runs.operations_with_effect.add(op)
        super().add(replace(handler, handle=counted_handle))
