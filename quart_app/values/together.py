"""Requests of many clients that go to the mesh as one.

A request, its commit and its reply cost the replicas many times what a small value or a short search costs. With many
clients, several things are asked for in the same turns of the event loop. Those with one key form a group, which is
asked for in one request. A group waits for others for three turns, which are short unless there is much to do. A single
client, which asks for one thing after the other, does not wait.

    wanted ---> group of its key ---> three turns: asked for ---> an answer for each
      |                                  |              |
      +-- one after the other            +-- it is one  +-- it takes long, or the mesh gives the request up
      v                                  v              v
                            each is asked for alone
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mesh import GivenUp, Unserved, tracing

K = TypeVar("K", bound=Hashable)
W = TypeVar("W")
A = TypeVar("A")

#: Deadlines within one such step may share a request: no deadline is kept more exactly.
STEP_MS = 20
#: So many turns of the event loop a group is open. With one, requests that come together have 0.88 of the rate.
TURNS = 3
#: The part of its time for which one waits for the answer to all. Then it is asked for alone: another one in the group
#: may need a replica that is stalled. A queue is never so long, see `is_full` in submit.lua.
PATIENCE = 0.25
#: Most characters of the ids of the calls that a request belongs to.
MOST_CALLS = 200

#: In place of an answer: it is to be asked for alone.
_ALONE: Any = object()


class Together(Generic[K, W, A]):
    """Asks for things with one key together, at most `most` in a request.

    `ask` takes the key, what is wanted, and the deadline (ms from now), and returns the answers in the same order.
    """

    def __init__(self, ask: Callable[[K, Sequence[W], int], Awaitable[Sequence[A]]], most: int) -> None:
        self._ask = ask
        self._most = most
        self._open: dict[tuple[K, int], _Group[W, A]] = {}
        self._in_progress = 0
        #: whether another one was in progress when the last one came
        self._had_company = False

    async def get(self, key: K, wanted: W, deadline_ms: int) -> A:
        """Return the answer to one thing that is wanted. Raises what `ask` raises."""
        had_company, self._had_company = self._had_company, self._in_progress > 0
        joins = (had_company or self._had_company) and not (tracing.is_on() or tracing.TRACEPARENT.get())
        self._in_progress += 1
        try:
            return await self._get(key, wanted, deadline_ms, joins=joins)
        finally:
            self._in_progress -= 1

    async def _get(self, key: K, wanted: W, deadline_ms: int, *, joins: bool) -> A:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        if joins:
            answer = await self._group(key, -(-deadline_ms // STEP_MS), loop).answer_to(wanted)
            if answer is not _ALONE:
                return answer
        left_ms = deadline_ms - int((loop.time() - begun_s) * 1000)
        (answer,) = await self._ask(key, [wanted], max(1, left_ms))
        return answer

    def _group(self, key: K, steps: int, loop: asyncio.AbstractEventLoop) -> _Group[W, A]:
        group = self._open.get((key, steps))
        if group is None or len(group.members) >= self._most:
            group = self._open[key, steps] = _Group()
            loop.call_soon(self._begin, key, steps, group, TURNS - 1)
        return group

    def _begin(self, key: K, steps: int, group: _Group[W, A], turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._begin, key, steps, group, turns - 1)
            return
        if self._open.get((key, steps)) is group:
            del self._open[key, steps]
        group.begin(lambda wanted: self._ask(key, wanted, steps * STEP_MS), PATIENCE * steps * STEP_MS / 1000)


class _Member(Generic[W, A]):
    """One thing that is wanted, who waits for the answer, and the call that it belongs to."""

    __slots__ = ("answer", "call", "trail", "wanted")

    def __init__(self, wanted: W) -> None:
        self.wanted = wanted
        self.answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.call, self.trail = tracing.CALL.get(), tracing.TRAIL.get()


class _Group(Generic[W, A]):
    """What is asked for in one request."""

    def __init__(self) -> None:
        self.members: list[_Member[W, A]] = []
        self._task: asyncio.Task[None] | None = None

    async def answer_to(self, wanted: W) -> A:
        """Join the group, and wait for the answer. When nobody waits any more, the request is given up."""
        member: _Member[W, A] = _Member(wanted)
        self.members.append(member)
        try:
            return await member.answer
        except asyncio.CancelledError:
            if self._task is not None and all(each.answer.done() for each in self.members):
                self._task.cancel()
            raise

    def begin(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[A]]], patience_s: float) -> None:
        """Ask for what somebody still waits for, unless it is one."""
        self.members = [each for each in self.members if not each.answer.done()]
        if len(self.members) > 1:
            context = contextvars.copy_context()
            self._task = asyncio.get_running_loop().create_task(self._run(ask, patience_s), context=context)
        else:
            self._leave_each_alone()

    async def _run(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[A]]], patience_s: float) -> None:
        members = self.members
        trail: list[tuple[str, Mapping[str, str]]] = []
        tracing.CALL.set(_joined([each.call for each in members]))
        tracing.TRAIL.set(trail)
        try:
            async with asyncio.timeout(patience_s):
                answers = await ask([each.wanted for each in members])
        except (TimeoutError, GivenUp, Unserved):
            # Another one in the group may be the reason, or a replica of an earlier release that takes one at a time.
            pass
        except Exception as error:
            for each in members:
                if not each.answer.done():
                    each.answer.set_exception(error)
        else:
            for each, answer in zip(members, answers, strict=True):
                if each.trail is not None:
                    each.trail += trail
                if not each.answer.done():
                    each.answer.set_result(answer)
        finally:
            self._leave_each_alone()

    def _leave_each_alone(self) -> None:
        for each in self.members:
            if not each.answer.done():
                each.answer.set_result(_ALONE)


def _joined(calls: Sequence[str]) -> str:
    """Return the ids of several calls as one, of as many of them as it may name."""
    text = ",".join(filter(None, calls))
    return text if len(text) <= MOST_CALLS else text[: MOST_CALLS + 1].rpartition(",")[0]
