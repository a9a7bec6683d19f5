"""The tasks in which a consumer works on its requests.

A task costs a tenth of what a request costs. So requests that come together share a task, which works on one after the
other as long as none of them waits for anything. The first request that waits keeps the task, and the requests after it
get another task. If a handler has waited or has changed context variables, all later requests of its operation have
tasks of their own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from typing import Any

from mesh.requests.handling import RemainingSteps, steps_of
from mesh.requests.work import Work


class Tasks:
    """Runs the coroutine that `work_on` returns for a request, or calls `forget` for one that was abandoned before."""

    def __init__(self, work_on: Callable[[Work], Coroutine[Any, Any, None]], forget: Callable[[Work], None]) -> None:
        self._work_on = work_on
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        #: operations whose requests get tasks of their own: one has waited, was cancelled, or changed context variables
        self._ops_with_own_tasks: set[str] = set()

    def begin(self, works: Sequence[Work]) -> None:
        """Begin to work on new requests. While one of them waits for something, `Work.task` is its task."""
        sharing: deque[Work] = deque()  # those that share one task
        is_alone = len(works) == 1
        for work in works:
            request = work.request
            # A request that comes alone has nothing to share a task with. A request with a call or a trace sets context
            # variables, so its task is not shared.
            if is_alone or request.call or request.traceparent or request.op in self._ops_with_own_tasks:
                work.task = self._loop.create_task(self._work_on(work))
            else:
                sharing.append(work)
        if sharing:
            self._begin_shared_task(sharing, copy_context())

    def _begin_shared_task(self, works: deque[Work], context: Context) -> None:
        # No reference to the task is needed here: when a request waits and keeps the task, `Work.task` refers to it.
        # `context` is without the changes of any handler; each task gets a copy of its own.
        if works:
            self._loop.create_task(self._one_after_another(works, context), context=context.copy())

    async def _one_after_another(self, works: deque[Work], context: Context) -> None:
        task = asyncio.current_task()
        try:
            while works:
                work = works.popleft()
                if work.abandoned:
                    self._forget(work)
                    continue
                work.task, coroutine = task, self._work_on(work)
                try:
                    waits_for = coroutine.send(None)
                except StopIteration:
                    work.task = None
                else:
                    self._ops_with_own_tasks.add(work.request.op)
                    remaining, works = works, deque()  # so that `finally` finds none of them
                    self._begin_shared_task(remaining, context)
                    # The runner itself measures how long a handler blocks the event loop: here any duration will do.
                    await RemainingSteps(steps_of(coroutine), waits_for, 0)
                    return
                # The handler has changed context variables, or somebody has cancelled this task. The later requests get
                # another task: they must not see these variables, nor be cancelled in place of this request.
                if copy_context() != context or (task is not None and task.cancelling()):
                    self._ops_with_own_tasks.add(work.request.op)
                    return
        finally:
            # All requests that this task has not begun and that no other task has got.
            self._begin_shared_task(works, context)
