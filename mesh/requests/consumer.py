"""Fetches requests, hands them over, keeps them alive while they are worked on, and settles them.

A replica has two consumers. The one of its class works on many requests at once, in no order. The one of its database
works in order, one entry's effect before the next one's read; neighbours without an effect run side by side.

    fetch ----> task per request: the worker runs the handler ----> commit ----> done
      |              ^      |                                         |
    reclaim ---------+      |   a conflict: the handler runs again    |
                     ^      |   anything else                         |
                     +------|-----------------------------------------+
                            +---> settlement decides: retry | bury | expire | hand back | forget
    keep alive: whoever lost its request is cancelled

No task waits for a commit: the link tells the request itself what came of it, and most are over then. Where something
is left to do, a task is begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from redis import exceptions as redis_errors

from mesh.errors import GivenUp, LeaseLost, MeshError, Refused
from mesh.requests import settlement, streams
from mesh.requests.protocol import NEVER, Request, failure_body, reply_stream
from mesh.requests.settlement import Bury, Commit, Expire, Forget, HandBack, Outcome, Rerun, Retry, settle
from mesh.requests.streams import RequestReader
from mesh.requests.transaction import Store, Transaction
from mesh.requests.worker import Worker
from mesh.settings import MeshSettings
from mesh.wire.clients import Link
from mesh.wire.failures import PASSING, is_fenced

log = structlog.get_logger(__name__)

#: What the commit script says.
_OUTCOMES = {"done": Outcome.DONE, "conflict": Outcome.CONFLICT, "not-mine": Outcome.NOT_OURS}
#: Conflicts before a request counts as crashed; each means that another one got through.
MOST_CONFLICTS = 100
PAUSE_S = 0.1

#: What came of a request, and why.
Found = tuple[Outcome, str]


class Work:
    """One request in progress. The link tells it what came of its commit."""

    __slots__ = ("_consumer", "committing", "conflicts", "ended", "given_away", "late", "request", "task")

    def __init__(self, request: Request, consumer: Consumer) -> None:
        self.request = request
        self.task: asyncio.Task[None] | None = None
        #: its transaction is on its way, and its task has ended
        self.committing = False
        self.conflicts = 0
        #: ended by another, or handed back: whatever becomes of it is not our doing
        self.given_away = False
        #: its deadline passed while it was worked on
        self.late = False
        #: whoever waits for the end of it
        self.ended: asyncio.Future[None] | None = None
        self._consumer = consumer

    def done(self) -> bool:
        """Nobody else tells it anything."""
        return False

    def set_result(self, word: str) -> None:
        """What the commit script said."""
        self._consumer.committed(self, word)

    def set_exception(self, error: BaseException) -> None:
        """The commit was not made."""
        self._consumer.not_committed(self, error)


@dataclass(slots=True)
class Counters:
    """What this consumer has done since it started."""

    done: int = 0
    refused: int = 0
    conflicts: int = 0
    crashed: int = 0
    expired: int = 0
    buried: int = 0
    reclaimed: int = 0
    lost: int = 0


@dataclass(slots=True)
class Member:
    """Who consumes: what commits and transactions need to know of the replica."""

    replica: str
    database: int
    cls: str
    link: Link
    settings: MeshSettings
    now_ms: Callable[[], int]


class Consumer:
    """Works off one request stream. `run` does it until cancelled; `stop` lets it end in order."""

    def __init__(self, member: Member, reader: RequestReader, worker: Worker, *, ordered: bool) -> None:
        self._member = member
        self._reader = reader
        self._worker = worker
        self._ordered = ordered
        self._store = Store(member.link, member.database, member.cls)
        self._works: dict[str, Work] = {}
        self._room = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._fetch_ended = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: Exception | None = None
        self.counters = Counters()

    @property
    def in_progress(self) -> int:
        """Requests being worked on."""
        return len(self._works)

    async def run(self) -> None:
        """Consume until stopped. Raises LeaseLost."""
        try:
            async with asyncio.TaskGroup() as tasks:
                failure = tasks.create_task(self._raise_failure())
                alive = tasks.create_task(self._keep_alive())
                reclaim = tasks.create_task(self._reclaim())
                try:
                    await self._fetch()
                finally:
                    self._fetch_ended.set()
                    reclaim.cancel()
                await self._idle.wait()
                alive.cancel()
                failure.cancel()
        finally:
            await self._end_all()

    def _begin(self, work: Work, found: Found | None = None) -> None:
        """Work on a request, or settle it where it is known what came of it, in a task whose parent is the consumer.

        A group's task costs a worker a tenth more for each request: two calls more, and another turn of the loop.
        """
        work.task = asyncio.get_running_loop().create_task(self._work(work, found))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._failed.set()

    async def _raise_failure(self) -> None:
        """A child that fails ends its parent, and so all the others."""
        await self._failed.wait()
        if self._failure is not None:
            raise self._failure

    async def _end_all(self) -> None:
        works = list(self._works.values())
        for work in works:
            self._give_away(work)
        await asyncio.gather(*(work.task for work in works if work.task is not None), return_exceptions=True)

    async def stop(self, wait_s: float) -> None:
        """Take nothing more, finish what runs, and hand the rest back after `wait_s`."""
        self._stopping.set()
        self._room.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._fetch_ended.wait()
                await self._idle.wait()
        left = list(self._works.values())
        for work in left:
            self._give_away(work)
        await self._reader.hand_back([work.request.id for work in left], self._member.settings.claim_idle_ms)

    @staticmethod
    def _give_away(work: Work) -> None:
        work.given_away = True
        if work.task is not None:
            work.task.cancel()

    async def _fetch(self) -> None:
        if self._ordered:
            await self._take_over_all()
        while not self._stopping.is_set():
            free = self._member.settings.concurrency - len(self._works)
            if free <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                entries = await self._reader.read(min(free, 64))
            except (*PASSING, redis_errors.ResponseError) as error:
                await self._after_mishap(error)
                continue
            await self._accept(entries)

    async def _take_over_all(self) -> None:
        """The database is ours alone now, and so is whatever its former holder had begun."""
        await self._reader.open()
        while taken := await self._reader.reclaim(0, 1000):
            works = [self._admit(id, fields, deliveries) for id, deliveries, fields in taken]
            await self._in_order([work for work in works if work is not None])

    async def _after_mishap(self, error: Exception) -> None:
        if is_fenced(error):
            raise LeaseLost("the Redis user of this lease is gone") from error
        log.warning("requests could not be read", stream=self._reader.stream, error=str(error))
        await asyncio.sleep(PAUSE_S)

    async def _accept(self, entries: Sequence[tuple[str, streams.Fields | None]]) -> None:
        works = []
        for id, fields in entries:
            if not fields:
                await self._member.link.shared("XACK", self._reader.stream, "workers", id)
            elif id not in self._works and (work := self._admit(id, fields)) is not None:
                works.append(work)
        if self._ordered:
            await self._in_order(works)
        else:
            for work in works:
                self._begin(work)
            # What has been begun goes first, and what it asks of Redis; then the next read is sent.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _admit(self, id: str, fields: streams.Fields, deliveries: int = 1) -> Work | None:
        request = streams.to_request(self._reader.stream, id, fields, deliveries)
        if isinstance(request, ValueError):
            log.error("an entry is no request; it becomes a dead letter", id=id, reason=str(request))
            request = Request(
                self._reader.stream,
                id,
                "",
                fields.get("request", ""),
                "",
                reply_stream(fields),
                0,
                {},
                deliveries,
            )
        if not self._works:
            self._idle.clear()
        work = self._works[id] = Work(request, self)
        return work

    async def _in_order(self, works: list[Work]) -> None:
        """Work on a database's entries: an effect alone, neighbours without one together."""
        neighbours: list[Work] = []
        for work in works:
            handler = self._worker.handler(work.request.op)
            if handler is not None and not handler.effect:
                neighbours.append(work)
                continue
            await self._together(neighbours)
            neighbours = []
            await self._together([work])
        await self._together(neighbours)

    async def _together(self, works: list[Work]) -> None:
        # A task each even when alone, so that a request which nobody waits for can be cancelled by itself.
        for work in works:
            work.ended = asyncio.get_running_loop().create_future()
            if work.given_away:
                self._forget(work)
            else:
                self._begin(work)
        for work in works:
            if work.ended is not None:
                await work.ended

    async def _work(self, work: Work, found: Found | None) -> None:
        try:
            try:
                found = found or await self._attempt(work)
            except asyncio.CancelledError:
                if not work.late:
                    raise
                found = Outcome.LATE, ""
            if found is not None:
                await self._settle(work, *found)
        except Exception as error:
            self._fail(error)
        finally:
            if not work.committing:
                self._forget(work)

    def committed(self, work: Work, word: str) -> None:
        """What came of a commit; what is not done then goes on in a task anew."""
        work.committing = False
        outcome = _OUTCOMES.get(word, Outcome.CRASHED)
        if outcome is Outcome.DONE:
            self.counters.done += 1
            self._forget(work)
        elif work.given_away:
            self._forget(work)
        elif outcome is Outcome.CONFLICT:
            self.counters.conflicts += 1
            work.conflicts += 1
            self._begin(work)
        else:
            self._begin(work, (outcome, word))

    def not_committed(self, work: Work, error: BaseException) -> None:
        """The commit could not be said, or the link has ended and with it the membership."""
        work.committing = False
        if isinstance(error, redis_errors.DataError) and not work.given_away:
            self._begin(work, (Outcome.CRASHED, str(error)))
            return
        if isinstance(error, LeaseLost | redis_errors.RedisError):
            self._fail(error)
        self._forget(work)

    def _forget(self, work: Work) -> None:
        self._works.pop(work.request.id, None)
        # Whoever waits for room came when there was none.
        if len(self._works) == self._member.settings.concurrency - 1:
            self._room.set()
        if not self._works:
            self._idle.set()
        if work.ended is not None and not work.ended.done():
            work.ended.set_result(None)

    async def _attempt(self, work: Work) -> Found | None:
        """Run the handler and have its transaction committed, of which the work will hear; or say why not."""
        member, request = self._member, work.request
        if settlement.overdelivered(request.deliveries, member.settings.max_deliveries):
            return Outcome.CRASHED, f"{request.deliveries - 1} deliveries, and none was finished"
        if not request.op:
            return Outcome.UNREADABLE, "the entry is no request"
        if work.conflicts == MOST_CONFLICTS:
            return Outcome.CRASHED, f"{MOST_CONFLICTS} commits in a row met a conflict"
        if self._is_late(request):
            return Outcome.LATE, ""
        transaction = Transaction(member.database, member.replica, request)
        handler = self._worker.handler(request.op)
        try:
            if handler is None:
                raise Refused(f"no replica here knows the operation {request.op!r}", op=request.op)
            body = await handler.handle(request, self._store, transaction)
            if body is not None:
                transaction.reply(body)
        except LeaseLost:
            raise
        except MeshError as error:
            self.counters.refused += 1
            transaction.refuse(error)
        except Exception as error:
            log.exception("a handler crashed", op=request.op, id=request.id, deliveries=request.deliveries)
            return Outcome.CRASHED, f"{type(error).__name__}: {error}"
        member.link.commit(transaction.wire(), work)
        work.committing = True
        return None

    def _is_late(self, request: Request) -> bool:
        return request.deadline != NEVER and request.deadline <= self._member.now_ms()

    async def _settle(self, work: Work, outcome: Outcome, reason: str) -> None:
        request = work.request
        match settle(outcome, request.deliveries, self._member.settings.max_deliveries, reason):
            case Bury(reason):
                self.counters.buried += 1
                await self._bury(request, reason)
            case Expire():
                self.counters.expired += 1
                await streams.settle(self._member.link, [(request.stream, request.id, "expired")])
            case Retry():
                self.counters.crashed += 1
                # Ordered work must not be overtaken by its successors.
                if self._ordered:
                    await self._again(work)
            case HandBack():
                await self._reader.hand_back([request.id], self._member.settings.claim_idle_ms)
            case Forget():
                self.counters.lost += 1
            case Commit() | Rerun():
                raise AssertionError("a commit is heard of, and a conflict run again, before anything is settled")

    async def _again(self, work: Work) -> None:
        """Deliver an entry of the database's stream to ourselves once more, in its place."""
        for id, deliveries, fields in await self._reader.reclaim(0, 1000):
            if id == work.request.id:
                request = streams.to_request(self._reader.stream, id, fields, deliveries)
                if isinstance(request, Request):
                    work.request, work.conflicts = request, 0
                    found = await self._attempt(work)
                    if found is not None:
                        await self._settle(work, *found)

    async def _bury(self, request: Request, reason: str) -> None:
        error = GivenUp(f"the request was given up: {reason}", deliveries=request.deliveries)
        log.error("dead letter", op=request.op, id=request.id, reason=reason)
        await self._reader.bury(
            request.id, request.reply_to, reason, request.deliveries, error.code, failure_body(error)
        )

    async def _keep_alive(self) -> None:
        interval_s = self._member.settings.keep_alive_ms / 1000
        while True:
            await asyncio.sleep(interval_s)
            ids = list(self._works)
            if not ids:
                continue
            lost = set(await self._reader.keep_alive(ids))
            for id in ids:
                work = self._works.get(id)
                if work is not None and not work.given_away:
                    work.late = self._is_late(work.request)
                    if work.late or id in lost:
                        self._give_away(work)

    async def _reclaim(self) -> None:
        settings = self._member.settings
        while not self._ordered:
            await asyncio.sleep(settings.claim_idle_ms / 4000)
            room = settings.concurrency - len(self._works)
            if room <= 0:
                continue
            try:
                taken = await self._reader.reclaim(settings.claim_idle_ms, min(room, 64))
            except redis_errors.ResponseError:  # no stream, no group: the fetching side opens them
                continue
            for id, deliveries, fields in taken:
                work = self._admit(id, fields, deliveries) if id not in self._works else None
                if work is not None:
                    self.counters.reclaimed += 1
                    self._begin(work)
