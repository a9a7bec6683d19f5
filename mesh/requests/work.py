"""What a consumer keeps of a request in progress, what it counts, and what it needs of its replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mesh.discovery import Directory
from mesh.requests.durations import Durations
from mesh.requests.protocol import Request
from mesh.requests.worker import Handler
from mesh.settings import MeshSettings
from mesh.wire.link import Link


class Committer(Protocol):
    """A consumer, as `Work` sees it: it learns what became of a commit.

    `answer` is commit.lua's answer, and not the answer to the request.
    """

    def committed(self, work: Work, answer: str) -> None: ...

    def not_committed(self, work: Work, error: BaseException) -> None: ...


class Work:
    """One request in progress. The link passes the result of the commit to this object in place of a future.

    The object then tells the consumer.
    """

    __slots__ = (
        "_committer", "abandoned", "began_at", "committing", "conflict_key", "conflicts", "ended_future", "handler",
        "last_reason", "late", "pause_ms", "request", "span", "task",
    )  # fmt: skip

    def __init__(self, request: Request, handler: Handler | None, committer: Committer) -> None:
        self.request = request
        self.handler = handler
        self.task: asyncio.Task[None] | None = None
        #: whether its transaction is with the link; its task has ended then
        self.committing = False
        #: how many conflicts the request had in this delivery, and the key of the last one
        self.conflicts = 0
        self.conflict_key = ""
        #: why its last attempt failed, so that the log shows the traceback of the same reason only once
        self.last_reason = ""
        #: whether its result no longer matters here: another consumer has or will get it, or its deadline has passed
        self.abandoned = False
        #: for how long (ms) the request leaves its stream and waits: before its next try, or because it is handed on
        self.pause_ms = 0
        #: whether the deadline of the request passed while it was in progress
        self.late = False
        #: resolved when the work ends; None on a class's stream, where no other request waits for that
        self.ended_future: asyncio.Future[None] | None = None
        #: when work on this delivery began, by `perf_counter`; 0: it has not
        self.began_at = 0.0
        #: the span of its commit, where there are spans
        self.span: Any = None
        self._committer = committer

    def done(self) -> bool:
        """Return False, so that the link passes the result or the error. The link does this only once."""
        return False

    def set_result(self, answer: str) -> None:
        """Receive what commit.lua answers for the request."""
        if self.span is not None:
            self._end_span()
        self._committer.committed(self, answer)

    def set_exception(self, error: BaseException) -> None:
        """Receive the error that prevented the commit."""
        if self.span is not None:
            self._end_span()
        self._committer.not_committed(self, error)

    def _end_span(self) -> None:
        self.span.end()
        self.span = None


@dataclass(slots=True)
class Counters:
    """How often a consumer has done each of these things since it started. The metrics have one counter for each."""

    #: requests that a commit has ended
    done: int = 0
    #: refusals by handlers and checks, one for each run; dead letters are not among them
    refused: int = 0
    #: how often a commit found that an expectation did not hold
    conflicts: int = 0
    #: attempts that failed, after which the request is delivered again or waits for its next try
    crashed: int = 0
    expired: int = 0
    buried: int = 0
    #: entries that were delivered before, to this or another consumer
    reclaimed: int = 0
    #: requests that were not this consumer's any more at the end; the books do not count these as lost
    lost: int = 0


@dataclass(slots=True)
class Host:
    """What consumers and transactions need of the replica that they belong to."""

    #: the id of the replica
    replica: str
    database: int
    cls: str
    link: Link
    settings: MeshSettings
    now_ms: Callable[[], int]
    #: returns the operations that an operator has paused
    paused: Callable[[], frozenset[str]]
    #: notes the moment (ms of Redis's clock) at which a waiting request may be due: then the replica wakes what is due
    note_due: Callable[[int], None]
    #: what the other replicas serve and understand
    directory: Directory
    durations: Durations
