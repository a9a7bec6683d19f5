"""Runs the handler of a request and hands its transaction to the link."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import structlog
from redis import exceptions as redis_errors

from mesh import keys
from mesh.discovery import nearest
from mesh.errors import Busy, Contended, InvalidBody, InvalidReply, LeaseLost, MeshError, Paused, Unserved
from mesh.groups.deliveries import is_overdelivered
from mesh.later.entering import NOT_MINE, PLACED, enter
from mesh.later.limit import Limit
from mesh.later.parking import Parked, park
from mesh.requests import tracing
from mesh.requests.effects import Effects
from mesh.requests.handling import Rest, describe, exited, printable, steps_of, traceback_of
from mesh.requests.protocol import NEVER, Request
from mesh.requests.refusals import refusal
from mesh.requests.settlement import Outcome
from mesh.requests.store import Store
from mesh.requests.work import Counters, Host, Work
from mesh.requests.worker import Handler, Worker

log = structlog.get_logger(__name__)

#: Conflicts of one request before it is given up; each means that another one got through.
MOST_CONFLICTS = 100
#: How often a request on the stream of a database looks again for room where it could wait.
ROOM_LOOK_S = 0.25
#: Longest time for which a request waits whose operation only other replicas of our class serve.
LONGEST_HAND_ON_MS = 250
#: Requests whose time of work is kept.
RECENT = 512
#: A handler that keeps the event loop longer than this is named in the log.
BLOCKED_S = 0.1

#: The outcome of a request, and the reason.
Found = tuple[Outcome, str]
Attempt = Callable[[Work, float], Awaitable[Found | None]]
#: The request is to run; it has no outcome yet.
_RUNS: Found = (Outcome.DONE, "")


class Runner:
    """Runs handlers for one consumer."""

    def __init__(self, host: Host, worker: Worker, counters: Counters) -> None:
        self._host = host
        self._worker = worker
        self._counters = counters
        #: microseconds of work of the last requests
        self.took_us: deque[int] = deque(maxlen=RECENT)
        self._store = Store(host.link, host.database, host.cls)
        #: Runs the handler of a work after some seconds, and hands its transaction to the link, which tells the work
        #: what came of it. Returns an outcome where there is no transaction. Raises LeaseLost.
        self.attempt: Attempt = self._spanning if tracing.is_on() else self._attempt

    async def _spanning(self, work: Work, after_s: float) -> Found | None:
        request = work.request
        tracing.TRACEPARENT.set(request.traceparent)
        name, about = tracing.processing(request.stream, request.op, request.id, request.deliveries)
        with tracing.span("CONSUMER", name, about) as span:
            found = await self._attempt(work, after_s, tracing.TRACEPARENT.get())
            if found is None:
                work.span = tracing.begin("INTERNAL", "commit", {})
            else:
                span.set_attribute("error.type", found[0].name.lower())
        return found

    async def _attempt(self, work: Work, after_s: float, traceparent: str = "") -> Found | None:
        host, request, handler = self._host, work.request, work.handler
        if after_s:
            await asyncio.sleep(after_s)
        if request.call or request.traceparent:
            tracing.CALL.set(request.call)
            tracing.TRACEPARENT.set(traceparent or request.traceparent)
        started, now_ms = perf_counter(), host.now_ms()
        if request.deliveries > 1 and is_overdelivered(request.deliveries, host.settings.max_deliveries):
            return Outcome.CRASHED, f"{request.deliveries - 1} deliveries, and none was finished"
        if not request.op:
            return Outcome.HOPELESS, "the entry is not a request"
        if request.is_late(now_ms):
            return Outcome.LATE, ""
        may_wait = handler is None or handler.limit is not None or request.op in host.paused()
        if may_wait and (found := await self._waits_or_fails(work, handler)) is not _RUNS:
            return found
        began = perf_counter() if may_wait else started
        begun = work.begun = work.begun or began
        transaction = Effects(host.database, host.replica, request, self._worker.verbs, host.settings.later_bound)
        try:
            if work.conflicts >= MOST_CONFLICTS:
                error = Contended.at(work.contended, work.conflicts)
                if not request.reply_to:
                    return Outcome.HOPELESS, error.detail
                self._refuse(transaction, error)
            else:
                await self._handle(handler, request, transaction, began)
            ended = perf_counter()
            took_us = int((ended - begun) * 1e6)
            self.took_us.append(took_us)
            if handler is not None:
                host.durations.add(request.op, (now_ms - request.at_ms) / 1000 + ended - started, ended - begun)
            words = transaction.wire(took_us)
            transaction.end()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return self._failed(work, error)
        except BaseException as error:
            # Handlers are foreign code: even SystemExit ends the request, not the replica.
            if isinstance(error, LeaseLost) and host.link.closed:
                raise
            return self._failed(work, error)
        # After a conflict it goes first, or newcomers would win again and again.
        host.link.commit(words, work, first=work.conflicts > 0)
        for due in transaction.dues:
            host.learn(due.moment_ms(host.now_ms()))
        work.committing = True
        return None

    async def _waits_or_fails(self, work: Work, handler: Handler | None) -> Found | None:
        """Do what `_waits` does. An entry that its scripts cannot read ends its request, and not the replica."""
        try:
            return await self._waits(work, handler)
        except (InvalidBody, redis_errors.ResponseError) as error:
            return Outcome.CRASHED, describe(error)

    async def _waits(self, work: Work, handler: Handler | None) -> Found | None:
        """Let a request wait, or refuse it, where it must not run now; return _RUNS where it may."""
        host, request = self._host, work.request
        if request.op in host.paused() and (found := await self._paused(work)) is not _RUNS:
            return found
        if handler is None:
            return await self._without_handler(work)
        limit = handler.limit
        if limit is not None and limit.interval_ms:
            # The next one of its rate may be due then, and it may come from a client, which wakes nothing.
            host.learn(host.now_ms() + limit.interval_ms)
        return _RUNS if limit is None or request.is_limited else await self._limited(work, limit)

    async def _without_handler(self, work: Work) -> Found | None:
        """Hand a request on, if its operation has no handler here and one at another replica of our class.

        On the stream of our database there is no other replica. Where nobody serves it, returns _RUNS, so that its
        caller hears of that. A request that nobody waits for also waits for a replica that is expected back; then it
        becomes a dead letter, which can be replayed.
        """
        host, request = self._host, work.request
        error = _unknown(request.op, self._worker.operations)
        patient, shared = not request.reply_to, not self._is_ordered(request)
        if shared and await host.directory.is_served(request.op, host.cls, patient=patient):
            # Half of its age: it is handed on at once, and then less and less often while only we read it.
            age_ms = host.now_ms() - request.at_ms
            work.pause_ms = max(1, min(age_ms // 2, LONGEST_HAND_ON_MS))
            return Outcome.ELSEWHERE, error.detail
        return _RUNS if request.reply_to else (Outcome.HOPELESS, error.detail)

    async def _limited(self, work: Work, limit: Limit) -> Found | None:
        """Let the limit of its operation decide about a request that came without it: its sender does not know it.

        Returns _RUNS for a body that its operation does not take: the handler is not called, and the caller hears why.
        """
        host, request = self._host, work.request
        if request.body.__class__ is InvalidBody:
            return _RUNS
        words, most = limit.words(request.op, request.body), host.settings.later_bound
        while True:
            code, about = await enter(host.link, request.stream, request.id, host.replica, words, most)
            if code == PLACED:
                return Outcome.PARKED, ""
            if code == NOT_MINE:
                return Outcome.NOT_OURS, ""
            error = refusal(code, about)
            if request.reply_to:
                self.refuse(work, error)
                return None
            if not isinstance(error, Busy):
                return Outcome.HOPELESS, error.detail
            if not self._is_ordered(request):
                return Outcome.NO_ROOM, ""
            await asyncio.sleep(ROOM_LOOK_S)

    async def _paused(self, work: Work) -> Found | None:
        """Refuse a call of a paused operation; let a request that nobody waits for wait on no stream.

        Returns _RUNS where it is to run all the same: the operation goes on by now, or the request is on the stream of
        our database, where it is a part of another request's effect.
        """
        host, request = self._host, work.request
        if request.reply_to:
            error = Paused(f"the operation {request.op} is paused by an operator; retry later", retry_after=5)
            self.refuse(work, error)
            return None
        if self._is_ordered(request):
            return _RUNS
        most = host.settings.later_bound
        match await park(host.link, request.stream, request.id, host.replica, request.op, most):
            case Parked.GOES_ON:
                return _RUNS
            case Parked.NOT_MINE:
                return Outcome.NOT_OURS, ""
            case Parked.FULL:
                return Outcome.NO_ROOM, ""
            case Parked.PARKED:
                return Outcome.PARKED, ""

    def _is_ordered(self, request: Request) -> bool:
        """Return whether the next entries of its stream wait for the request: on the stream of our database."""
        return request.stream == keys.database_requests(self._host.database)

    async def _handle(self, handler: Handler | None, request: Request, transaction: Effects, began: float) -> None:
        """Fill the transaction. Raises whatever the handler raises, except a refusal."""
        if handler is None:
            self._refuse(transaction, _unknown(request.op, self._worker.operations))
            return
        rest = None
        try:
            steps = steps_of(handler.handle(request, self._store, transaction))
            try:
                waits_for = steps.send(None)
            except StopIteration as end:
                body = end.value
            else:
                rest = Rest(steps, waits_for, perf_counter() - began)
                body = await rest
            # Without a caller, nobody would hear of a refusal, and the effect of the request would be lost. So what it
            # sends goes out; if nobody serves that, it becomes a dead letter.
            if request.is_answered:
                _answer(handler, transaction, body)
                if transaction.asked:
                    await self._host.directory.check(transaction.asked, transaction.level)
        except LeaseLost:
            raise
        except GeneratorExit as exit:
            raise exited() from exit
        except MeshError as error:
            if isinstance(error, InvalidReply):
                log.error("reply cannot be sent", op=request.op, id=request.id, reason=printable(error.detail))
            self._refuse(transaction, error)
        finally:
            blocked_s = perf_counter() - began if rest is None else rest.longest_s
            if blocked_s > BLOCKED_S:
                blocked_ms = round(blocked_s * 1000)
                log.warning("handler blocked the event loop", op=request.op, id=request.id, blocked_ms=blocked_ms)

    def refuse(self, work: Work, error: MeshError) -> None:
        """Answer the request with an error in place of the transaction of its handler."""
        transaction = Effects(self._host.database, self._host.replica, work.request)
        self._refuse(transaction, error)
        self._host.link.commit(transaction.wire(), work)
        work.committing = True

    def _refuse(self, transaction: Effects, error: MeshError) -> None:
        self._counters.refused += 1
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

    def _failed(self, work: Work, error: BaseException) -> Found:
        """Return the outcome for an exception of a handler: another try later, where its operation has some left.

        On a database's stream the next entries wait for this one, so it is delivered again at once, as without a Retry.
        """
        request = work.request
        handler = work.handler
        retry = None if handler is None else handler.retry
        if retry is None or not isinstance(error, retry.on) or self._is_ordered(request):
            return self._crashed(work, error)
        tries = request.failed_tries + 1
        pause_ms = retry.pause_ms(tries)
        late = request.deadline != NEVER and self._host.now_ms() + (pause_ms or 0) >= request.deadline
        if pause_ms is None or late:
            return Outcome.HOPELESS, self._crashed(work, error)[1]
        work.pause_ms = pause_ms
        reason = describe(error)
        log.warning("try failed", op=request.op, id=request.id, tries=tries, pause_ms=pause_ms, reason=reason)
        return Outcome.TRY_FAILED, reason


def _answer(handler: Handler, transaction: Effects, body: Any) -> None:
    """Answer with what a handler returned. Raises InvalidReply."""
    if handler.encode is not None:
        passed_on = body is None and transaction.forwards
        transaction.reply_json(b"" if passed_on else handler.encode(body))
    elif body is not None:
        transaction.reply(body)


def _unknown(op: str, known: list[str]) -> Unserved:
    """Return the error for an operation that another release serves, or a replica that has left meanwhile."""
    return Unserved(f"no replica here knows the operation {op!r:.100}{nearest(op, known)}", op=op)


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the current task; a handler may raise CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
