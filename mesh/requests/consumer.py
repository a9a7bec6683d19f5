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
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis import exceptions as redis_errors

from mesh.errors import Contended, GivenUp, LeaseLost, MeshError, Refused
from mesh.requests import settlement, streams
from mesh.requests.handling import Stretches, describe, printable, traceback_of
from mesh.requests.protocol import NEVER, Request, failure_body, reply_stream
from mesh.requests.settlement import Bury, Commit, Expire, Forget, HandBack, Outcome, Rerun, Retry, settle
from mesh.requests.store import Store
from mesh.requests.streams import RequestReader
from mesh.requests.transaction import CONFLICT, Transaction, contended_key
from mesh.requests.turns import Turns
from mesh.requests.worker import Worker
from mesh.settings import MeshSettings
from mesh.wire.clients import Link
from mesh.wire.failures import PASSING, is_fenced

log = structlog.get_logger(__name__)

#: What the commit script says.
_OUTCOMES = {"done": Outcome.DONE, "not-mine": Outcome.NOT_OURS}
#: Conflicts of one request before it is given up; each means that another one got through.
MOST_CONFLICTS = 100
PAUSE_S = 0.1
#: A handler that keeps the event loop longer than this is named in the log.
BLOCKED_S = 0.1
#: How long a cancelled handler may take to end before it is left to itself.
CANCEL_S = 1.0

#: What came of a request, and why.
Found = tuple[Outcome, str]


class Work:
    """One request in progress. The link tells it what came of its commit."""

    __slots__ = (
        "_consumer",
        "committing",
        "conflicts",
        "contended",
        "ended",
        "given_away",
        "late",
        "reason",
        "request",
        "task",
    )

    def __init__(self, request: Request, consumer: Consumer) -> None:
        self.request = request
        self.task: asyncio.Task[None] | None = None
        #: its transaction is on its way, and its task has ended
        self.committing = False
        self.conflicts = 0
        #: the key at which it met the last conflict
        self.contended = ""
        #: why its last attempt failed
        self.reason = ""
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
        self._turns: Turns[Work] = Turns(self._begin)
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

    @property
    def conflicts(self) -> Counter[str]:
        """Conflicts that requests met, by key."""
        return self._turns.conflicts

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
        tasks = {work.task: work for work in works if work.task is not None}
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=CANCEL_S)
        for task in left:
            # It cannot be forced to end. Whatever it writes is refused: the lease and the request are another's.
            log.error("handler ignores its cancellation", op=tasks[task].request.op, id=tasks[task].request.id)

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

    def _give_away(self, work: Work) -> None:
        """Stop working on a request: another has it, or will."""
        work.given_away = True
        if self._turns.leave(work):
            self._forget(work)
        elif work.task is not None and work.task.cancel():
            # A task that is cancelled before its first step does not get to its `finally`.
            work.task.add_done_callback(lambda _: self._forget(work))

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
            log.error("the entry is not a request", id=id, reason=printable(str(request)))
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
            while True:
                found = found or await self._unless_late(work, self._attempt(work))
                if found is None or not await self._settle(work, *found):
                    return
                self._turns.leave(work)
                found = await self._unless_late(work, self._redeliver(work))
        except Exception as error:
            self._fail(error)
        finally:
            if not work.committing:
                self._forget(work)

    @staticmethod
    async def _unless_late(work: Work, step: Coroutine[Any, Any, Found | None]) -> Found | None:
        """Take a step of the work; LATE where it is cancelled because its deadline has passed."""
        try:
            return await step
        except asyncio.CancelledError:
            if not work.late:
                raise
            return Outcome.LATE, ""

    def committed(self, work: Work, word: str) -> None:
        """What came of a commit; what is not done then goes on in a task anew."""
        work.committing = False
        outcome = Outcome.CONFLICT if word.startswith(CONFLICT) else _OUTCOMES.get(word, Outcome.CRASHED)
        if outcome is Outcome.DONE:
            self.counters.done += 1
            self._forget(work)
        elif work.given_away:
            self._forget(work)
        elif outcome is Outcome.CONFLICT:
            self.counters.conflicts += 1
            work.conflicts += 1
            work.contended = contended_key(word)
            self._turns.take(work, work.contended)
        else:
            self._begin(work, (outcome, word))

    def not_committed(self, work: Work, error: BaseException) -> None:
        """The commit could not be said, or the link has ended and with it the membership."""
        work.committing = False
        if isinstance(error, redis_errors.DataError | redis_errors.ResponseError) and not work.given_away:
            self._begin(work, (Outcome.CRASHED, describe(error)))
            return
        if isinstance(error, LeaseLost | redis_errors.RedisError):
            self._fail(error)
        self._forget(work)

    def _forget(self, work: Work) -> None:
        self._turns.leave(work)
        if self._works.get(work.request.id) is work:
            del self._works[work.request.id]
        # Whoever waits for room came when there was none.
        if len(self._works) == self._member.settings.concurrency - 1:
            self._room.set()
        if not self._works:
            self._idle.set()
        if work.ended is not None and not work.ended.done():
            work.ended.set_result(None)

    async def _attempt(self, work: Work) -> Found | None:
        """Run the handler and hand its transaction to the link, which will tell the work what came of it.

        Returns an outcome where there is no transaction. Raises LeaseLost.
        """
        member, request = self._member, work.request
        if settlement.overdelivered(request.deliveries, member.settings.max_deliveries):
            return Outcome.CRASHED, f"{request.deliveries - 1} deliveries, and none was finished"
        if not request.op:
            return Outcome.UNREADABLE, "the entry is not a request"
        if self._is_late(request):
            return Outcome.LATE, ""
        transaction = Transaction(member.database, member.replica, request)
        try:
            if work.conflicts >= MOST_CONFLICTS:
                error = Contended.at(work.contended, work.conflicts)
                if not request.reply_to:
                    return Outcome.UNREADABLE, error.detail
                self._refuse(transaction, error)
            else:
                await self._handle(request, transaction)
            words = transaction.wire()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return self._crashed(work, error)
        except BaseException as error:
            # Handlers are foreign code: even SystemExit ends the request, not the replica.
            if isinstance(error, LeaseLost) and member.link.closed:
                raise
            return self._crashed(work, error)
        # One that had a conflict would lose to newcomers again and again; they have all the time to follow.
        member.link.commit(words, work, first=work.conflicts > 0)
        work.committing = True
        return None

    async def _handle(self, request: Request, transaction: Transaction) -> None:
        """Fill the transaction. Raises whatever the handler raises, except a refusal."""
        handler = self._worker.handler(request.op)
        if handler is None:
            self._refuse(transaction, Refused(f"no replica here knows the operation {request.op!r}", op=request.op))
            return
        running = Stretches(handler.handle(request, self._store, transaction))
        try:
            body = await running
            if body is not None:
                transaction.reply(body)
        except LeaseLost:
            raise
        except MeshError as error:
            self._refuse(transaction, error)
        finally:
            if running.longest_s > BLOCKED_S:
                blocked_ms = round(running.longest_s * 1000)
                log.warning("handler blocked the event loop", op=request.op, id=request.id, blocked_ms=blocked_ms)

    def _refuse(self, transaction: Transaction, error: MeshError) -> None:
        self.counters.refused += 1
        transaction.refuse(error)

    @staticmethod
    def _crashed(work: Work, error: BaseException) -> Found:
        """The outcome for an exception; its traceback is printed once, and not for each delivery."""
        reason, request = describe(error), work.request
        facts = {"op": request.op, "id": request.id, "deliveries": request.deliveries, "reason": reason}
        if reason != work.reason:
            facts["exception"] = traceback_of(error)
        log.error("handler failed", **facts)
        work.reason = reason
        return Outcome.CRASHED, reason

    def _is_late(self, request: Request) -> bool:
        return request.deadline != NEVER and request.deadline <= self._member.now_ms()

    async def _settle(self, work: Work, outcome: Outcome, reason: str) -> bool:
        """End the request, or return True where it is to be delivered again."""
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
                return True
            case HandBack():
                await self._reader.hand_back([request.id], self._member.settings.claim_idle_ms)
            case Forget():
                self.counters.lost += 1
            case Commit() | Rerun():
                raise AssertionError("a commit is heard of, and a conflict run again, before anything is settled")
        return False

    async def _redeliver(self, work: Work) -> Found | None:
        """Deliver a request to ourselves once more, after a pause; NOT_OURS where somebody else has ended it.

        The next delivery counts in Redis, so that a request which kills its process is not tried for ever.
        """
        await asyncio.sleep(self._pause_s(work.request))
        deliveries = await self._reader.redeliver(work.request.id)
        if not deliveries:
            return Outcome.NOT_OURS, ""
        work.request, work.conflicts = work.request._replace(deliveries=deliveries), 0
        return None

    def _pause_s(self, request: Request) -> float:
        """Seconds before the next delivery. All of them fit into the deadline, so that the caller learns the reason.

        On a database's stream the next entry waits for this one, so there is none.
        """
        if self._ordered:
            return 0
        pause_ms = self._member.settings.claim_idle_ms
        if request.deadline != NEVER:
            pause_ms = max(0, min(pause_ms, (request.deadline - self._member.now_ms()) // 8))
        return pause_ms / 1000

    async def _bury(self, request: Request, reason: str) -> None:
        reason = printable(reason)
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
                    if work.late and self._turns.leave(work):
                        self._begin(work, (Outcome.LATE, ""))
                    elif work.late or id in lost:
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


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the current task; a handler may raise CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
