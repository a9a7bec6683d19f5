"""The consumer of one request stream: it takes requests, has their handlers run, and acts on the outcome of each.

A replica has two consumers. The consumer of its class works on many requests at once, in no order. The consumer of its
database works in order: it ends a request with an effect before it begins the next request. Requests without an effect
that follow each other run side by side.

    new, taken over ---> task: run the handler ----> commit ----> done
                           ^       |                   |
                           |       |                   +--> conflict: wait for a turn, run again
                           |       |                   +--> any other answer
                           |       v                             |
                           |    `settle` decides <---------------+
                           |       +---> redeliver: after a pause, deliver again
                           +-------+     or: defer, hand on, give back, bury, expire, refuse, forget
    at each keep-alive: cancel requests that another consumer has taken, or that are past their deadline

`GroupConsumer` reads new entries, takes over entries that nobody keeps alive, and keeps ours alive. No task waits for a
commit. The link calls `committed` with the answer. After most commits nothing is left to do; else a new task begins.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

import structlog
from redis import exceptions as redis_errors

from mesh.errors import GivenUp, LeaseLost
from mesh.groups.consumer import COMMAND_ERRORS, GroupConsumer
from mesh.groups.reader import Delivered
from mesh.later.retry import defer
from mesh.requests import streams
from mesh.requests.handling import describe, printable
from mesh.requests.protocol import NEVER, Request, decode_object, error_body, operation_of, unreadable_request
from mesh.requests.refusals import commit_error
from mesh.requests.runner import OutcomeAndReason, Runner
from mesh.requests.settlement import (
    DONE,
    Bury,
    Commit,
    Defer,
    Expire,
    Forget,
    GiveBack,
    HandOn,
    Leave,
    Outcome,
    Redeliver,
    RefuseRequest,
    Rerun,
    contended_key,
    outcome_of,
    settle,
)
from mesh.requests.streams import RequestReader
from mesh.requests.tasks import Tasks
from mesh.requests.turns import Turns
from mesh.requests.work import Counters, Host, Work
from mesh.requests.worker import Worker
from mesh.wire.failures import is_fenced

log = structlog.get_logger(__name__)

#: The longest backoff after reading or taking over entries failed. Callers wait meanwhile, so it is short.
LONGEST_PAUSE_S = 0.2
#: The most entries that one read returns. More need fewer trips, but the first one waits until all are decoded.
MOST_READ = 64
#: An ending consumer waits so long for cancelled handlers, and then logs those that still run. More delays its end.
CANCELLED_WAIT_S = 1.0
#: A request without a caller on a database's stream tries a refused commit again after this pause. Shorter pauses load
#: the server more; longer ones hold up the next requests of this database.
NOT_ALLOWED_PAUSE_S = 1.0


class Consumer(GroupConsumer[Work]):
    """The consumer of one request stream. `ordered`: it is a database's stream, which no other replica reads."""

    _reader: RequestReader

    def __init__(self, host: Host, reader: RequestReader, worker: Worker, *, ordered: bool) -> None:
        idle_ms, keep_ms = host.settings.claim_idle_ms, host.settings.keep_alive_ms
        super().__init__(
            reader, MOST_READ, claim_idle_ms=idle_ms, keep_alive_ms=keep_ms, pause_s=LONGEST_PAUSE_S, alone=ordered
        )
        self._host, self._concurrency = host, host.settings.concurrency
        self._worker = worker
        self._ordered = ordered
        self._turns: Turns[Work] = Turns(self._begin)
        self._has_room = asyncio.Event()
        self._idle = asyncio.Event()  # set while no request is in progress
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._fatal_error: asyncio.Future[None] = self._loop.create_future()
        self.counters = Counters()
        self._runner = Runner(host, worker, self.counters)
        self._tasks = Tasks(self._serve, self._remove_work)

    @property
    def in_progress(self) -> int:
        """The number of requests in progress."""
        return len(self._works)

    @property
    def last_durations_us(self) -> deque[int]:
        """How long this consumer worked on each of the last requests, in microseconds."""
        return self._runner.last_durations_us

    @property
    def conflicts_by_key(self) -> Counter[str]:
        """By key: how many conflicts there were."""
        return self._turns.conflicts_by_key

    async def run(self) -> None:
        """Take requests and work on them until stopped. Raises LeaseLost."""
        try:
            async with asyncio.TaskGroup() as tasks:
                failure_task = tasks.create_task(self._raise_fatal_error())
                await super().run()
                failure_task.cancel()
        finally:
            await self._end_all()

    async def _raise_fatal_error(self) -> None:
        """Wait for an error that a request's task cannot handle. Raise it in the task group of `run`, which it ends."""
        await self._fatal_error

    async def stop(self, wait_s: float) -> None:
        self._stopping.set()
        self._has_room.set()
        await super().stop(wait_s)

    def _begin(self, work: Work, known_outcome: OutcomeAndReason | None = None, after_s: float = 0) -> None:
        """Begin a task that runs a request after `after_s` seconds, or only settles it, as `known_outcome` says."""
        # These tasks are in no TaskGroup, because a request would cost a tenth more. `_end_all` cancels them.
        work.task = self._loop.create_task(self._serve(work, known_outcome, after_s))

    def _make_run_raise(self, error: Exception) -> None:
        if not self._fatal_error.done():
            self._fatal_error.set_exception(error)

    async def _end_all(self) -> None:
        await self._abandon()
        work_of = {work.task: work for work in self._works.values() if work.task is not None}
        if not work_of:
            return
        _, unended = await asyncio.wait(work_of, timeout=CANCELLED_WAIT_S)
        for task in unended:
            # Nothing can force the task to end. But the link is closed, so its transaction will be refused.
            log.error("handler ignores its cancellation", op=work_of[task].request.op, id=work_of[task].request.id)

    def _abandon_work(self, work: Work) -> None:
        """Stop working on a request: another consumer has it or will get it, or its deadline has passed."""
        work.abandoned = True  # all that is done while its transaction is with the link: `committed` then removes it
        if self._turns.leave(work):
            self._remove_work(work)
        elif work.task is not None and work.task.cancel():
            # `_serve` removes the request in the end, but not if its task is cancelled before the first step.
            work.task.add_done_callback(lambda _: self._remove_work(work))

    # GroupConsumer calls `_kept_alive`, and the methods from here to `_accept`. Its docstrings say what each is for.
    def room_now(self) -> int:
        return min(super().room_now(), max(0, self._concurrency - len(self._works)))

    async def _wait_for_room(self) -> int:
        while not (room := self.room_now()) and not self._stopping.is_set():
            self._has_room.clear()
            await self._has_room.wait()
        return room

    async def _read_all(self) -> None:
        await super()._read_all()
        await self._idle.wait()  # `stop` lets the requests in progress end

    async def _abandon(self) -> bool:
        works = list(self._works.values())
        for work in works:
            self._abandon_work(work)
        return bool(works)

    def _failed(self, error: Exception) -> None:
        if is_fenced(error):
            raise LeaseLost("the lease is over: its Redis user is gone") from error
        if not isinstance(error, COMMAND_ERRORS):
            raise error
        log.warning("requests could not be read", stream=self._reader.stream, error=str(error))

    async def _accept(self, entries: Sequence[Delivered]) -> None:
        works = [self._admit(id, deliveries, flat) for id, deliveries, flat in entries if id not in self._works]
        if self._ordered:
            await self._run_in_order(works)
        else:
            self._tasks.begin(works)
            # Two turns of the event loop before the next read: the tasks run, then the link sends their commands.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _admit(self, id: str, deliveries: int, flat: Sequence[str]) -> Work:
        handler = self._worker.handler(operation_of(flat))
        decode = decode_object if handler is None else handler.decode
        try:
            request = Request.from_entry(self._reader.stream, id, flat, deliveries, decode)
        except ValueError as error:
            log.error("the entry is not a request", id=id, reason=printable(str(error)))
            request = unreadable_request(self._reader.stream, id, flat, deliveries)  # becomes a dead letter
        if deliveries > 1:
            self.counters.reclaimed += 1
        if not self._works:
            self._idle.clear()
        work = self._works[id] = Work(request, handler, self)
        return work

    async def _run_in_order(self, works: list[Work]) -> None:
        """Work in order on a database's requests: each with an effect by itself, neighbours without one together."""
        without_effect: list[Work] = []
        for work in works:
            if work.handler is not None and not work.handler.has_effect:
                without_effect.append(work)
                continue
            await self._run_side_by_side(without_effect)
            without_effect = []
            await self._run_side_by_side([work])
        await self._run_side_by_side(without_effect)

    async def _run_side_by_side(self, works: list[Work]) -> None:
        # Even a single request gets a task, so that it can be cancelled when its caller no longer waits.
        for work in works:
            work.ended_future = self._loop.create_future()
            if work.abandoned:
                self._remove_work(work)
            else:
                self._begin(work)
        for work in works:
            if work.ended_future is not None:  # always; this line is for the type checker
                await work.ended_future

    async def _serve(self, work: Work, outcome_and_reason: OutcomeAndReason | None = None, after_s: float = 0) -> None:
        try:
            while True:
                try:
                    outcome_and_reason = outcome_and_reason or await self._runner.attempt(work, after_s)
                except asyncio.CancelledError:
                    if not work.late:  # the cancellation has another reason than the deadline
                        raise
                    outcome_and_reason = Outcome.LATE, ""
                if outcome_and_reason is None or not await self._settle(work, *outcome_and_reason):  # None: committing
                    return
                self._turns.leave(work)  # so that no other request waits during the pause
                outcome_and_reason = await self._redeliver(work)
        except Exception as error:
            self._make_run_raise(error)
        finally:
            if not work.committing:
                self._remove_work(work)

    def committed(self, work: Work, answer: str) -> None:
        """Receive what commit.lua answers for a request, and go on in a new task if the request is not done."""
        work.committing = False
        if answer == DONE:
            self.counters.done += 1
            self._remove_work(work)
            return
        outcome = outcome_of(answer, has_caller=bool(work.request.reply_to))
        if work.abandoned:
            self._remove_work(work)
        elif outcome is Outcome.CONFLICT:
            self.counters.conflicts += 1
            work.conflicts += 1
            if work.request.found is not None:  # the value of a shared key at the submission: it may be out of date
                work.request = replace(work.request, found=None)
            work.conflict_key = contended_key(answer)
            self._turns.take(work, work.conflict_key)
        elif outcome is Outcome.NOT_ALLOWED and not work.request.reply_to:  # no caller would get a refusal: try later
            self._turns.leave(work)
            if self._ordered:  # the next requests must not overtake it, so it is tried again here
                self._begin(work, after_s=NOT_ALLOWED_PAUSE_S)
            else:
                self._begin(work, (Outcome.NO_ROOM, answer))
        else:
            self._begin(work, (outcome, answer))

    def not_committed(self, work: Work, error: BaseException) -> None:
        """Receive the error that kept a transaction from being committed: it cannot be sent, or the link is closed."""
        work.committing = False
        if isinstance(error, redis_errors.DataError | redis_errors.ResponseError) and not work.abandoned:
            self._begin(work, (Outcome.CRASHED, describe(error)))  # only this transaction is at fault
            return
        if isinstance(error, LeaseLost | redis_errors.RedisError):
            self._make_run_raise(error)
        self._remove_work(work)  # if the link is closed, the request stays pending until a consumer claims it

    def _remove_work(self, work: Work) -> None:
        if work.conflicts:
            self._turns.leave(work)
        if self._works.get(work.request.id) is work:
            del self._works[work.request.id]
        # The reading task waits only while this consumer is full. It was full until now.
        if len(self._works) == self._concurrency - 1:
            self._has_room.set()
        if not self._works:
            self._idle.set()
        if work.ended_future is not None and not work.ended_future.done():
            work.ended_future.set_result(None)

    async def _settle(self, work: Work, outcome: Outcome, reason: str) -> bool:
        """Do what `settle` decides. Return True if the caller must deliver the request again."""
        request = work.request
        match settle(outcome, request.deliveries, self._host.settings.max_deliveries, reason):
            case Bury(reason):
                self.counters.buried += 1
                await self._bury(request, reason)
            case Expire():
                self.counters.expired += 1
                await streams.remove(self._host.link, [(request.stream, request.id, "expired", bool(request.options))])
            case Redeliver():
                self.counters.crashed += 1
                return True
            case Forget():
                self.counters.lost += 1  # for this consumer only: the books do not call it lost
            case Leave():
                pass
            case Defer(reason):
                self.counters.crashed += 1
                await self._defer(work, work.request.failed_tries + 1, reason)
            case GiveBack():
                await self._reader.give_back(request.id)
            case HandOn(reason):
                await self._defer(work, work.request.failed_tries, reason)
            case RefuseRequest(reason):
                self._runner.commit_refusal(work, commit_error(reason))
            case Commit() | Rerun():
                raise AssertionError("commits and conflicts are not settled here")
        return False

    async def _defer(self, work: Work, failed_tries: int, reason: str) -> None:
        request, host = work.request, self._host
        due_ms = await defer(host.link, request.stream, request.id, host.replica, work.pause_ms, failed_tries, reason)
        if due_ms:  # 0: the request is not this consumer's any more
            host.note_due(due_ms)

    async def _redeliver(self, work: Work) -> OutcomeAndReason | None:
        """Deliver a request to this consumer again, after a pause. Return an outcome if its handler must not run.

        Redis counts the deliveries, so that a request that kills its process each time is buried at last.
        """
        try:
            await asyncio.sleep(self._redelivery_pause_s(work.request))
        except asyncio.CancelledError:
            if not work.late:
                raise
            return Outcome.LATE, ""
        deliveries = await self._reader.redeliver(work.request.id)
        if not deliveries:
            return Outcome.NOT_MINE, ""
        work.request = replace(work.request, deliveries=deliveries, found=None)
        work.conflicts, work.began_at = 0, 0.0  # both belong to one delivery, not to the request
        return None

    def _redelivery_pause_s(self, request: Request) -> float:
        """Return the pause before the next delivery, in seconds.

        The pause is at most an eighth of the time until the deadline. So all deliveries happen before the deadline, and
        the caller learns why the request fails. On a database's stream the next request waits, so there is no pause.
        """
        if self._ordered:
            return 0
        pause_ms = self._host.settings.claim_idle_ms  # as long as after the death of a replica
        if request.deadline != NEVER:
            pause_ms = max(0, min(pause_ms, (request.deadline - self._host.now_ms()) // 8))
        return pause_ms / 1000

    async def _bury(self, request: Request, reason: str) -> None:
        reason = printable(reason)
        error = GivenUp(f"the request was given up: {reason}", deliveries=request.deliveries)
        log.error("dead letter", op=request.op, id=request.id, reason=reason)
        await self._reader.bury(request.id, request.reply_to, reason, request.deliveries, error.code, error_body(error))

    def _kept_alive(self, ids: Sequence[str], lost: set[str]) -> None:
        for id in ids:
            work = self._works.get(id)
            if work is not None and not work.abandoned:
                work.late = work.request.is_late(self._host.now_ms())
                if work.late and self._turns.leave(work):  # while it waits for a turn, it has no task to cancel
                    self._begin(work, (Outcome.LATE, ""))
                elif work.late or id in lost:
                    self._abandon_work(work)


def load_of(consumers: Sequence[Consumer], loop_ms: float) -> dict[str, str]:
    """Return the fields of a roster row about a replica's work. `loop_ms` is how late its event loop runs."""
    durations_us = sorted(us for consumer in consumers for us in consumer.last_durations_us)
    return {
        "answered": str(sum(consumer.counters.done for consumer in consumers)),
        "in_hand": str(sum(consumer.in_progress for consumer in consumers)),
        "loop_ms": f"{loop_ms:.1f}",
        "p50_us": str(durations_us[len(durations_us) // 2]) if durations_us else "",
        "p99_us": str(durations_us[len(durations_us) * 99 // 100]) if durations_us else "",
    }
