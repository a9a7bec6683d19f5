"""Requests of many clients that go to the mesh as one.

A request, its commit and its reply cost the replicas many times what a small value or a short search costs. With many
clients, several things are asked for in one turn of the event loop. Those with one key form a group, which is asked for
in one request at the end of the turn. Nothing waits longer than that for others to join.

    wanted ---> group of its key ---> end of the turn: asked for ---> an answer for each
                                                          |
                                                          +--> the mesh gave the request up: each is asked for alone
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from mesh import GivenUp, Unserved, tracing

K = TypeVar("K", bound=Hashable)
W = TypeVar("W")
A = TypeVar("A")

#: Most characters of the ids of the calls that a request belongs to.
MOST_CALLS = 200


class Together(Generic[K, W, A]):
    """Asks for things with one key together, at most `most` in a request.

    `ask` takes the key and what is wanted, and returns the answers in the same order.
    """

    def __init__(self, ask: Callable[[K, Sequence[W]], Awaitable[Sequence[A]]], most: int) -> None:
        self._ask = ask
        self._most = most
        self._open: dict[K, _Group[W, A]] = {}

    async def get(self, key: K, wanted: W) -> A:
        """Return the answer to one thing that is wanted. Raises what `ask` raises."""
        if tracing.is_on() or tracing.TRACEPARENT.get():
            return await self._alone(key, wanted)
        group = self._open.get(key)
        if group is None or len(group.members) >= self._most:
            group = self._open[key] = _Group()
            asyncio.get_running_loop().call_soon(self._begin, key, group)
        try:
            return await group.answer_to(wanted)
        except (GivenUp, Unserved):
            # Another one in the group may be the reason, or a replica of an earlier release that takes one at a time.
            if len(group.members) == 1:
                raise
            return await self._alone(key, wanted)

    async def _alone(self, key: K, wanted: W) -> A:
        (answer,) = await self._ask(key, [wanted])
        return answer

    def _begin(self, key: K, group: _Group[W, A]) -> None:
        if self._open.get(key) is group:
            del self._open[key]
        group.begin(lambda wanted: self._ask(key, wanted))


class _Member(Generic[W, A]):
    """One thing that is wanted, who waits for the answer, and the call that it belongs to."""

    __slots__ = ("answer", "call", "context", "trail", "wanted")

    def __init__(self, wanted: W) -> None:
        self.wanted = wanted
        self.answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.call, self.trail = tracing.CALL.get(), tracing.TRAIL.get()
        self.context = contextvars.copy_context()


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

    def begin(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[A]]]) -> None:
        """Ask, unless nobody waits any more."""
        self.members = [each for each in self.members if not each.answer.done()]
        if self.members:
            work = self._run(ask)
            self._task = asyncio.get_running_loop().create_task(work, context=self.members[0].context)

    async def _run(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[A]]]) -> None:
        members = self.members
        trail: list[tuple[str, Mapping[str, str]]] = []
        if len(members) > 1:
            tracing.CALL.set(_joined([each.call for each in members]))
            tracing.TRAIL.set(trail)
        try:
            answers = await ask([each.wanted for each in members])
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
            for each in members:
                each.answer.cancel()


def _joined(calls: Sequence[str]) -> str:
    """Return the ids of several calls as one, of as many of them as it may name."""
    text = ",".join(filter(None, calls))
    return text if len(text) <= MOST_CALLS else text[: MOST_CALLS + 1].rpartition(",")[0]
