"""The tasks in which a consumer works on its requests.

A task costs as much as a tenth of a request. So requests that come together share one: they are worked on in turn as
long as none of them waits for anything. The first one that waits keeps the task, and those after it get another one. An
operation whose handler has waited before, or has changed context variables, has a task for each of its requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from typing import Any

from mesh.requests.handling import Rest, steps_of
from mesh.requests.work import Work


class Tasks:
    """Begins the coroutines that `work_on` returns, or calls `forget` for a request that was given away before that."""

    def __init__(self, work_on: Callable[[Work], Coroutine[Any, Any, None]], forget: Callable[[Work], None]) -> None:
        self._work_on = work_on
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        #: operations whose requests have tasks of their own
        self._apart: set[str] = set()

    def begin(self, works: Sequence[Work]) -> None:
        """Begin to work on new requests. While one of them waits for something, `Work.task` is its task."""
        together: deque[Work] = deque()
        is_alone = len(works) == 1
        for work in works:
            request = work.request
            if is_alone or request.call or request.traceparent or request.op in self._apart:
                work.task = self._loop.create_task(self._work_on(work))
            else:
                together.append(work)
        if together:
            self._begin_in_turn(together, copy_context())

    def _begin_in_turn(self, works: deque[Work], context: Context) -> None:
        # The request that keeps the task refers to it. Until then it does not wait.
        if works:
            self._loop.create_task(self._in_turn(works, context), context=context.copy())

    async def _in_turn(self, works: deque[Work], context: Context) -> None:
        task = asyncio.current_task()
        try:
            while works:
                work = works.popleft()
                if work.given_away:
                    self._forget(work)
                    continue
                work.task, steps = task, self._work_on(work)
                try:
                    waits_for = steps.send(None)
                except StopIteration:
                    work.task = None
                else:
                    self._apart.add(work.request.op)
                    others, works = works, deque()
                    self._begin_in_turn(others, context)
                    await Rest(steps_of(steps), waits_for, 0)
                    return
                if copy_context() != context or (task is not None and task.cancelling()):
                    self._apart.add(work.request.op)
                    return
        finally:
            self._begin_in_turn(works, context)
