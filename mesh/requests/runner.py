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
from mesh.discovery import suggestion_for
from mesh.errors import Busy, Contended, InvalidBody, InvalidReply, LeaseLost, MeshError, Paused, Unserved
from mesh.groups.deliveries import is_overdelivered
from mesh.later.entering import MOVED, NOT_MINE, enter
from mesh.later.limit import Limit
from mesh.later.parking import Parked, park
from mesh.requests import tracing
from mesh.requests.effects import Effects
from mesh.requests.handling import RemainingSteps, describe, generator_exit_mistake, printable, steps_of, traceback_of
from mesh.requests.protocol import NEVER, Request
from mesh.requests.refusals import refusal
from mesh.requests.settlement import Outcome
from mesh.requests.store import Store
from mesh.requests.work import Counters, Host, Work
from mesh.requests.worker import Handler, Worker

log = structlog.get_logger(__name__)

#: A request is given up after so many conflicts. Each conflict means that another request was committed. With a smaller
#: number, more requests at busy keys are given up; with a larger one, a request may cost more runs of its handler.
MOST_CONFLICTS = 100
#: A request on a database's stream that finds no room among the waiting requests asks for room again after this pause.
#: Shorter pauses load the server more; longer ones hold up the next requests of this database.
ENTER_AGAIN_S = 0.25
#: A request that is handed on is on no stream for at most this time. After a shorter time, we may read the request
#: again before another replica does, which costs the server work. During a longer time, the caller waits although a
#: replica that serves the operation is free.
LONGEST_HAND_ON_MS = 250
#: How many durations `Runner.last_durations_us` keeps. The roster row shows their median and their 99th percentile.
#: With fewer, single slow requests would decide the percentile; with more, the figures would show a change later.
DURATIONS_KEPT = 512
#: If a handler blocks the event loop for longer than this, the log names its operation. With a shorter time, the log
#: would also name handlers that were only slowed down by a busy machine.
BLOCKED_S = 0.1

#: The outcome of an attempt at a request, and its reason as text: for the log, for a dead letter, or "".
OutcomeAndReason = tuple[Outcome, str]
#: Makes one attempt at a request, after a pause of so many seconds: the type of `Runner.attempt`.
Attempt = Callable[[Work, float], Awaitable[OutcomeAndReason | None]]
#: The result of a check that does not end the attempt: `_handle` comes next. It runs the handler or, if the request
#: cannot be handled, makes the error the answer. Code compares with `is`; the content does not matter.
_GO_ON: OutcomeAndReason = (Outcome.DONE, "")


class Runner:
    """Makes the attempts at the requests of one consumer."""

    def __init__(self, host: Host, worker: Worker, counters: Counters) -> None:
        self._host = host
        self._worker = worker
        self._counters = counters
        #: how long the work on each of the last requests took, in microseconds
        self.last_durations_us: deque[int] = deque(maxlen=DURATIONS_KEPT)
        self._store = Store(host.link, host.database, host.cls)
        #: Makes one attempt at a request, after a pause of so many seconds: runs the handler, hands the transaction to
        #: the link, and returns None. Later the link passes the answer of the commit to the work. If the attempt ends
        #: without a transaction, returns the outcome and its reason. Raises LeaseLost.
        self.attempt: Attempt = self._attempt_in_span if tracing.is_on() else self._attempt

    async def _attempt_in_span(self, work: Work, after_s: float) -> OutcomeAndReason | None:
        request = work.request
        tracing.TRACEPARENT.set(request.traceparent)
        name, attributes = tracing.processing(request.stream, request.op, request.id, request.deliveries)
        with tracing.span("CONSUMER", name, attributes) as span:
            outcome_and_reason = await self._attempt(work, after_s, tracing.TRACEPARENT.get())
            if outcome_and_reason is None:
                work.span = tracing.begin("INTERNAL", "commit", {})
            else:
                span.set_attribute("error.type", outcome_and_reason[0].name.lower())
        return outcome_and_reason

    # The checks come first, because a request that they end needs no transaction. `request.call` is the X-Request-Id of
    # the HTTP request that caused this request, or another name that the sender has set. A sender that creates spans
    # may have set no name: then `call` is empty, but `traceparent` is not. `delivery_traceparent` is the context of the
    # span of this delivery. The checks may wait, so the run of the handler begins later than the attempt.
    async def _attempt(self, work: Work, after_s: float, delivery_traceparent: str = "") -> OutcomeAndReason | None:
        host, request, handler = self._host, work.request, work.handler
        if after_s:
            await asyncio.sleep(after_s)
        if request.call or request.traceparent:
            tracing.CALL.set(request.call)
            tracing.TRACEPARENT.set(delivery_traceparent or request.traceparent)
        attempt_began, now_ms = perf_counter(), host.now_ms()
        if request.deliveries > 1 and is_overdelivered(request.deliveries, host.settings.max_deliveries):
            return Outcome.CRASHED, f"{request.deliveries - 1} deliveries, and none was finished"
        if not request.op:
            return Outcome.HOPELESS, "the entry is not a request"
        if request.is_late(now_ms):
            return Outcome.LATE, ""
        needs_checks = handler is None or handler.limit is not None or request.op in host.paused()
        if needs_checks and (outcome_and_reason := await self._wait_refuse_or_fail(work, handler)) is not _GO_ON:
            return outcome_and_reason
        run_began = perf_counter() if needs_checks else attempt_began
        first_run_began = work.began_at = work.began_at or run_began
        transaction = Effects(host.database, host.replica, request, self._worker.verbs, host.settings.later_bound)
        try:
            if work.conflicts >= MOST_CONFLICTS:
                error = Contended.at(work.conflict_key, work.conflicts)
                if not request.reply_to:
                    return Outcome.HOPELESS, error.detail
                self._turn_into_refusal(transaction, error)
            else:
                await self._handle(handler, request, transaction, run_began)
            run_ended = perf_counter()
            took_us = int((run_ended - first_run_began) * 1e6)
            self.last_durations_us.append(took_us)
            if handler is not None:  # the time since it was sent, and the time of all runs in this delivery
                host.durations.add(
                    request.op, (now_ms - request.at_ms) / 1000 + run_ended - attempt_began, run_ended - first_run_began
                )
            encoded = transaction.wire(took_us)
            transaction.end()  # a task that the handler did not await gets an error if it still writes
        except asyncio.CancelledError as error:
            if _is_current_task_cancelled():
                raise
            return self._outcome_of_exception(work, error)
        except BaseException as error:  # even if a handler raises SystemExit, only its request ends, not the replica
            if isinstance(error, LeaseLost) and host.link.closed:
                raise  # the membership is over; if the link is still open, the handler itself has raised LeaseLost
            return self._outcome_of_exception(work, error)
        host.link.commit(encoded, work, first=work.conflicts > 0)  # behind others it would conflict with their commits
        for due in transaction.dues:
            host.note_due(due.moment_ms(host.now_ms()))  # at this time our replica wakes what is due
        work.committing = True
        return None

    async def _wait_refuse_or_fail(self, work: Work, handler: Handler | None) -> OutcomeAndReason | None:
        """Do what `_wait_or_refuse` does. If the limit cannot read the body or a script fails, return CRASHED."""
        try:
            return await self._wait_or_refuse(work, handler)
        except (InvalidBody, redis_errors.ResponseError) as error:
            return Outcome.CRASHED, describe(error)

    async def _wait_or_refuse(self, work: Work, handler: Handler | None) -> OutcomeAndReason | None:
        """Return _GO_ON if a request may run now. Otherwise let it wait, or refuse it.

        Returns None if a refusal is with the link already.
        """
        host, request = self._host, work.request
        if request.op in host.paused() and (outcome_and_reason := await self._refuse_or_park(work)) is not _GO_ON:
            return outcome_and_reason
        if handler is None:
            return await self._without_handler(work)
        limit = handler.limit
        if limit is not None and limit.interval_ms:  # 0 if the limit has no rate
            # The next request of this rate may wait already. If a client has sent it, no replica knows when it is due,
            # because clients do not wake requests. So this replica looks when one interval of the rate has passed.
            host.note_due(host.now_ms() + limit.interval_ms)
        return _GO_ON if limit is None or request.has_passed_limit else await self._apply_limit(work, limit)

    async def _without_handler(self, work: Work) -> OutcomeAndReason | None:
        """Hand on a request whose operation has no handler here, if another replica of our class has one.

        On the stream of our database nothing is handed on, because no other replica reads it. If nobody serves the
        operation, returns _GO_ON for a request with a caller: then `_handle` refuses it, and the caller learns why. A
        request without a caller also waits for a replica that is expected back. If there is none, it becomes a dead
        letter, which can be replayed.
        """
        host, request = self._host, work.request
        error = _unserved(request.op, self._worker.operations)
        has_no_caller, has_other_readers = not request.reply_to, not self._is_on_own_stream(request)
        if has_other_readers and await host.directory.is_served(request.op, host.cls, counts_expected=has_no_caller):
            # During the pause the request is on no stream. The pause is half of the request's age: short at first, then
            # longer and longer while no other replica reads it.
            age_ms = host.now_ms() - request.at_ms
            work.pause_ms = max(1, min(age_ms // 2, LONGEST_HAND_ON_MS))
            return Outcome.ELSEWHERE, error.detail
        return _GO_ON if request.reply_to else (Outcome.HOPELESS, error.detail)

    async def _apply_limit(self, work: Work, limit: Limit) -> OutcomeAndReason | None:
        """Apply the limit of its operation to a request whose sender did not know this limit.

        If the decoder could not read the body, an InvalidBody stands in its place, and no limit can be applied. Then
        this returns _GO_ON: the handler's `handle` raises the InvalidBody, and so the caller gets it.
        """
        host, request = self._host, work.request
        if request.body.__class__ is InvalidBody:
            return _GO_ON
        limit_text, later_bound = limit.words(request.op, request.body), host.settings.later_bound
        # If there is no room, the loop ends when the consumer cancels this task: after the deadline, or when it stops.
        while True:
            code, about = await enter(host.link, request.stream, request.id, host.replica, limit_text, later_bound)
            if code == MOVED:  # the request has left this entry: it waits, or has a new one on its stream
                return Outcome.PARKED, ""
            if code == NOT_MINE:
                return Outcome.NOT_MINE, ""
            error = refusal(code, about)
            if request.reply_to:
                self.commit_refusal(work, error)
                return None
            # The error is no Busy if a key has another type, or if the Redis user may not read it. A later attempt
            # would fail, too. As a dead letter, the request can be replayed when somebody has repaired this.
            if not isinstance(error, Busy):
                return Outcome.HOPELESS, error.detail
            if not self._is_on_own_stream(request):
                return Outcome.NO_ROOM, ""
            # Our database's next requests must not run before this one, so it cannot be given back.
            await asyncio.sleep(ENTER_AGAIN_S)

    async def _refuse_or_park(self, work: Work) -> OutcomeAndReason | None:
        """Refuse a request of a paused operation if a caller waits for it, or else park it.

        Returns _GO_ON, so that the request runs, if the pause has ended meanwhile. Returns _GO_ON also for a request
        without a caller on the stream of our database. It is a part of another request's effect, and the next requests
        of the stream wait for it.
        """
        host, request = self._host, work.request
        if request.reply_to:
            # The end of the pause is not known. 5 s: a shorter time would bring more calls that are refused again.
            error = Paused(f"the operation {request.op} is paused by an operator; retry later", retry_after=5)
            self.commit_refusal(work, error)
            return None
        if self._is_on_own_stream(request):
            return _GO_ON
        later_bound = host.settings.later_bound
        match await park(host.link, request.stream, request.id, host.replica, request.op, later_bound):
            case Parked.GOES_ON:
                return _GO_ON
            case Parked.NOT_MINE:
                return Outcome.NOT_MINE, ""
            case Parked.FULL:
                return Outcome.NO_ROOM, ""
            case Parked.PARKED:
                return Outcome.PARKED, ""

    def _is_on_own_stream(self, request: Request) -> bool:
        """Return whether a request is on the stream of our database. There the next requests wait until it ends."""
        return request.stream == keys.database_requests(self._host.database)

    async def _handle(self, handler: Handler | None, request: Request, transaction: Effects, run_began: float) -> None:
        """Run the handler, which fills the transaction, and add its answer.

        A MeshError of the handler becomes the answer. LeaseLost and all other exceptions are raised.
        """
        if handler is None:
            self._turn_into_refusal(transaction, _unserved(request.op, self._worker.operations))
            return
        remaining_steps = None
        try:
            steps = steps_of(handler.handle(request, self._store, transaction))
            try:
                waits_for = steps.send(None)
            except StopIteration as end:  # the handler has returned without a wait
                body = end.value
            else:
                remaining_steps = RemainingSteps(steps, waits_for, perf_counter() - run_began)
                body = await remaining_steps
            # The check raises an error if nobody serves an operation of the sends, or if a live replica does not know
            # the highest level of their options. If a request has neither a caller nor an idempotency key (not
            # `is_answered`), nobody would learn of this error, and the effect of the request would be lost. So then the
            # sends go out unchecked, and a send whose operation nobody serves becomes a dead letter.
            if request.is_answered:
                add_answer(handler, transaction, body)
                if transaction.sent_ops:
                    await self._host.directory.check(transaction.sent_ops, transaction.level)
        except LeaseLost:  # is a MeshError, but not an answer
            raise
        except GeneratorExit as generator_exit:  # unchanged, it would look as if the event loop had closed us
            raise generator_exit_mistake() from generator_exit
        except MeshError as error:
            if isinstance(error, InvalidReply):
                log.error("reply cannot be sent", op=request.op, id=request.id, reason=printable(error.detail))
            self._turn_into_refusal(transaction, error)
        finally:
            # A handler that never waited has blocked the event loop for its whole run.
            blocked_s = perf_counter() - run_began if remaining_steps is None else remaining_steps.longest_s
            warn_if_blocked(request, blocked_s)

    def commit_refusal(self, work: Work, error: MeshError) -> None:
        """Commit a transaction that only answers the request with an error. A caller waits for the answer.

        The runner calls this in place of the handler. The consumer calls it after commit.lua has refused the
        transaction of the handler. In both cases no transaction of this work is with the link.
        """
        transaction = Effects(self._host.database, self._host.replica, work.request)
        self._turn_into_refusal(transaction, error)
        self._host.link.commit(transaction.wire(), work)
        work.committing = True

    def _turn_into_refusal(self, transaction: Effects, error: MeshError) -> None:
        """Let a transaction only answer with an error, and count the refusal.

        The counter counts runs, not requests: a request that is refused again after a conflict counts again.
        """
        self._counters.refused += 1
        transaction.refuse(error)

    @staticmethod
    def _log_crash(work: Work, error: BaseException) -> OutcomeAndReason:
        """Log an exception, and return its outcome.

        The log gets no traceback if the last attempt at this request failed for the same reason.
        """
        reason, request = describe(error), work.request
        facts = {"op": request.op, "id": request.id, "deliveries": request.deliveries, "reason": reason}
        if reason != work.last_reason:
            facts["exception"] = traceback_of(error)
        log.error("handler failed", **facts)
        work.last_reason = reason
        return Outcome.CRASHED, reason

    def _outcome_of_exception(self, work: Work, error: BaseException) -> OutcomeAndReason:
        """Return the outcome for an exception of a handler. A Retry of its operation may allow another try later.

        On a database's stream the next requests wait for this one. So the Retry is ignored there, and the request is
        delivered again at once.
        """
        request = work.request
        handler = work.handler
        retry = None if handler is None else handler.retry
        if retry is None or not isinstance(error, retry.on) or self._is_on_own_stream(request):
            return self._log_crash(work, error)
        failed_tries = request.failed_tries + 1
        pause_ms = retry.pause_ms(failed_tries)
        # `pause_ms` is None if no try is left. Then the value of `is_too_late` makes no difference.
        is_too_late = request.deadline != NEVER and self._host.now_ms() + (pause_ms or 0) >= request.deadline
        if pause_ms is None or is_too_late:
            return Outcome.HOPELESS, self._log_crash(work, error)[1]  # the reason, without its outcome
        work.pause_ms = pause_ms
        reason = describe(error)
        log.warning("try failed", op=request.op, id=request.id, tries=failed_tries, pause_ms=pause_ms, reason=reason)
        return Outcome.TRY_FAILED, reason


def warn_if_blocked(request: Request, blocked_s: float) -> None:
    """Log that the handler of a request has blocked the event loop, if this took longer than BLOCKED_S."""
    if blocked_s > BLOCKED_S:
        blocked_ms = round(blocked_s * 1000)
        log.warning("handler blocked the event loop", op=request.op, id=request.id, blocked_ms=blocked_ms)


def add_answer(handler: Handler, transaction: Effects, body: Any) -> None:
    """Make what a handler returned the answer of its transaction. Raises InvalidReply."""
    if handler.encode is not None:
        # If only other addresses answer, our reply has no body: it only says how many replies the caller gets.
        only_forwards = body is None and transaction.forwards
        transaction.reply_json(b"" if only_forwards else handler.encode(body))
    elif body is not None:
        transaction.reply(body)


def _unserved(op: str, known_ops: list[str]) -> Unserved:
    """Return the error for an operation without a handler here. Another release or a replica that left may have one."""
    return Unserved(f"no replica here knows the operation {op!r:.100}{suggestion_for(op, known_ops)}", op=op)


def _is_current_task_cancelled() -> bool:
    """Return whether somebody has cancelled the current task. A handler may also raise CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
