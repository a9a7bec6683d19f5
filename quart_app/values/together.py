"""Requests of several clients that go to the mesh as one.

A request to the mesh, with its commit and its reply, costs the replicas far more time than storing a small value or a
short search. So callers that overlap and have the same key form a group, which sends one request. A group stays open
for three turns of the event loop. A turn is short unless the process has much to do. A single client that waits for
each answer before it asks again does not overlap with anybody, so it never waits for a group.

    get --> open group of the key --> closed after three turns: one request --> an answer for each caller
     |                                  |                         |
     +-- no overlap with others         +-- it has one caller     +-- it takes too long, or the mesh gives it up
     v                                  v                         v
                         each caller sends a request of its own
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mesh import GivenUp, Unserved, tracing

#: The key of a group, what one caller wants, and the answer to one caller.
K = TypeVar("K", bound=Hashable)
W = TypeVar("W")
A = TypeVar("A")

#: Time limits are rounded up to a multiple of this. Only callers with the same rounded time limit share a request. With
#: a larger step, more callers share, and short time limits grow by more.
TIME_LIMIT_STEP_MS = 20
#: For how many turns of the event loop a group stays open. With one turn, a replica under load answers 12 % fewer
#: callers a second; with more turns, each caller waits longer.
TURNS = 3
#: A caller waits for the request of its group during this fraction of its time limit. Then it sends its own request:
#: the group may wait for a stalled replica that only another caller needs. A longer wait leaves too little time for its
#: own request; a shorter one sends more of them. A full queue is rarely the cause of a
#: late reply: for submit.lua (`refused_by_queue`), a queue is full after a wait of a tenth of the time limit.
WAIT_FRACTION = 0.25
#: Longest text of call ids that a request carries, in characters. The mesh drops a longer text altogether
#: (`tracing.about`).
MOST_ID_CHARACTERS = 200

#: Takes the place of an answer: the caller must send a request of its own.
_SEND_ALONE: Any = object()


class Together(Generic[K, W, A]):
    """Groups the callers in this process that may share requests: at most `most` share one, all with the same key.

    `ask` sends a request. It takes the key, what each caller wants, and the time limit (ms). It returns one answer for
    each caller, in the order of what they want.
    """

    def __init__(self, ask: Callable[[K, Sequence[W], int], Awaitable[Sequence[A]]], most: int) -> None:
        self._ask = ask
        self._most = most
        #: by key and time limit, in steps: the group that further callers may join
        self._open_groups: dict[tuple[K, int], _Group[W, A]] = {}
        #: how many calls of `get` have not returned yet
        self._in_progress_count = 0
        #: whether the latest caller came while another one was in progress
        self._latest_overlaps = False

    async def get(self, key: K, wanted: W, time_limit_ms: int) -> A:
        """Return the answer to one caller. Raises what `ask` raises."""
        # All callers of a group get their answers together. So when the first of them asks again, no other caller is in
        # progress. It joins a group nevertheless, because the caller before it overlapped.
        previous_overlapped, self._latest_overlaps = self._latest_overlaps, self._in_progress_count > 0
        # A caller with a trace sends its own request, because the span of a request has only one parent.
        should_join = (previous_overlapped or self._latest_overlaps) and not (
            tracing.is_on() or tracing.TRACEPARENT.get()
        )
        self._in_progress_count += 1
        try:
            return await self._join_or_ask(key, wanted, time_limit_ms, should_join=should_join)
        finally:
            self._in_progress_count -= 1

    async def _join_or_ask(self, key: K, wanted: W, time_limit_ms: int, *, should_join: bool) -> A:
        """Return the answer from a group if the caller `should_join` one, else from a request of its own."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        if should_join:
            # The minus signs round the number of steps up.
            answer = await self._join_or_open(key, -(-time_limit_ms // TIME_LIMIT_STEP_MS), loop).answer_to(wanted)
            if answer is not _SEND_ALONE:
                return answer
        left_ms = time_limit_ms - int((loop.time() - start_s) * 1000)
        (answer,) = await self._ask(key, [wanted], max(1, left_ms))
        return answer

    def _join_or_open(self, key: K, time_limit_steps: int, loop: asyncio.AbstractEventLoop) -> _Group[W, A]:
        """Return the open group if it has room for one more caller; otherwise open one, which closes after TURNS."""
        group = self._open_groups.get((key, time_limit_steps))
        if group is None or len(group.callers) >= self._most:
            group = self._open_groups[key, time_limit_steps] = _Group()
            loop.call_soon(self._close_after, TURNS - 1, key, time_limit_steps, group)
        return group

    def _close_after(self, turns: int, key: K, time_limit_steps: int, group: _Group[W, A]) -> None:
        """Close a group after `turns` further turns of the event loop, and send its request."""
        if turns:
            asyncio.get_running_loop().call_soon(self._close_after, turns - 1, key, time_limit_steps, group)
            return
        if self._open_groups.get((key, time_limit_steps)) is group:
            del self._open_groups[key, time_limit_steps]
        time_limit_ms = time_limit_steps * TIME_LIMIT_STEP_MS
        group.send(lambda wanted: self._ask(key, wanted, time_limit_ms), WAIT_FRACTION * time_limit_ms / 1000)


class _WaitingCaller(Generic[W, A]):
    """One caller of a group: what it wants, the future of its answer, its call id and its trail (see tracing.py)."""

    __slots__ = ("answer", "call", "trail", "wanted")

    def __init__(self, wanted: W) -> None:
        self.wanted = wanted
        self.answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.call, self.trail = tracing.CALL.get(), tracing.TRAIL.get()


class _Group(Generic[W, A]):
    """The callers that share one request."""

    def __init__(self) -> None:
        self.callers: list[_WaitingCaller[W, A]] = []
        self._task: asyncio.Task[None] | None = None

    async def answer_to(self, wanted: W) -> A:
        """Join the group, and wait for the answer. The request is cancelled when all of its callers are cancelled."""
        caller: _WaitingCaller[W, A] = _WaitingCaller(wanted)
        self.callers.append(caller)
        try:
            return await caller.answer
        except asyncio.CancelledError:
            if self._task is not None and all(other.answer.done() for other in self.callers):
                self._task.cancel()
            raise

    def send(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[A]]], wait_s: float) -> None:
        """Send the request if at least two callers still wait; a single caller sends its own."""
        self.callers = [caller for caller in self.callers if not caller.answer.done()]
        if len(self.callers) > 1:
            # A copy, because `_run` puts its own call id and trail into it.
            context = contextvars.copy_context()
            self._task = asyncio.get_running_loop().create_task(self._run(ask, wait_s), context=context)
        else:
            self._let_unanswered_send_alone()

    async def _run(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[A]]], wait_s: float) -> None:
        """Send the request, and pass each caller its answer or the error."""
        callers = self.callers
        # `Calls` appends to it, for each reply: the address of the request, and the fields of the reply.
        trail: list[tuple[str, Mapping[str, str]]] = []
        tracing.CALL.set(_as_one_text([caller.call for caller in callers]))
        tracing.TRAIL.set(trail)
        try:
            async with asyncio.timeout(wait_s):
                answers = await ask([caller.wanted for caller in callers])
        except (TimeoutError, GivenUp, Unserved):
            # The cause may be another caller's part, or a replica of an earlier release that does not serve shared
            # requests. So each caller tries alone.
            pass
        except Exception as error:
            for caller in callers:
                if not caller.answer.done():
                    caller.answer.set_exception(error)
        else:
            for caller, answer in zip(callers, answers, strict=True):
                if caller.trail is not None:
                    caller.trail += trail
                if not caller.answer.done():
                    caller.answer.set_result(answer)
        finally:
            self._let_unanswered_send_alone()

    def _let_unanswered_send_alone(self) -> None:
        """Wake each caller that has no answer, so that it sends a request of its own."""
        for caller in self.callers:
            if not caller.answer.done():
                caller.answer.set_result(_SEND_ALONE)


def _as_one_text(call_ids: Sequence[str]) -> str:
    """Return the ids of several calls, with commas between them. The ids beyond MOST_ID_CHARACTERS are left out."""
    text = ",".join(filter(None, call_ids))
    return text if len(text) <= MOST_ID_CHARACTERS else text[: MOST_ID_CHARACTERS + 1].rpartition(",")[0]
