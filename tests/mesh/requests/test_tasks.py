"""Requests that come together share a task, for as long as none of them waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from mesh.requests.protocol import Request
from mesh.requests.tasks import Tasks
from mesh.requests.work import Work

NAME: ContextVar[str] = ContextVar("name", default="")


def works(*ops: str, call: str = "", first: int = 0) -> list[Work]:
    committer: Any = None
    return [
        Work(Request("mesh:requests:A", f"{n}-0", op, "k", "from", "", 0, {}, call=call), None, committer)
        for n, op in enumerate(ops, first)
    ]


class Ran:
    """Runs works, and notes for each the task it ran in, and the name that this task had in its context."""

    def __init__(self, handlers: dict[str, Callable[[], Any]] | None = None) -> None:
        self.handlers = handlers or {}
        self.tasks: dict[str, asyncio.Task[Any] | None] = {}
        self.names: dict[str, str] = {}
        self.forgotten: list[Work] = []
        self.made = Tasks(self.work_on, self.forgotten.append)

    async def work_on(self, work: Work) -> None:
        request = work.request
        self.tasks[request.id], self.names[request.id] = asyncio.current_task(), NAME.get()
        if handler := self.handlers.get(request.op):
            await handler()
            # It is the same task to the end, as asyncio.timeout() needs it.
            assert asyncio.current_task() is self.tasks[request.id] is work.task

    async def begin(self, found: list[Work]) -> int:
        """Work on them; return in how many tasks."""
        self.made.begin(found)
        ids = {work.request.id for work in found}
        async with asyncio.timeout(5):
            while not ids <= self.tasks.keys():
                await asyncio.sleep(0)
        return len({self.tasks[id] for id in ids})


async def test_requests_that_do_not_wait_share_a_task() -> None:
    """When they have ended, none of them has a task that somebody could cancel."""
    ran, found = Ran(), works("a", "b", "a")
    assert await ran.begin(found) == 1
    assert [work.task for work in found] == [None, None, None]


async def test_a_request_that_waits_keeps_its_task_and_the_others_go_on() -> None:
    """From then on each request of its operation has a task of its own, so that all begin in one turn of the loop."""
    gate = asyncio.Event()
    ran, found = Ran({"slow": gate.wait}), works("a", "slow", "b", "c")
    assert await ran.begin(found) == 2
    assert found[1].task is ran.tasks["1-0"] and not gate.is_set()
    assert await ran.begin(works("slow", "slow", "a", "b", first=9)) == 3
    gate.set()
    await asyncio.gather(*{task for task in ran.tasks.values() if task is not None})


async def test_a_cancelled_request_does_not_take_others_with_it() -> None:
    """The task that is cancelled belongs to one request only."""
    ran, found = Ran({"slow": lambda: asyncio.sleep(60)}), works("a", "slow", "b")
    await ran.begin(found)
    task = found[1].task
    assert task is not None and task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and ran.tasks["2-0"] is not task


async def test_what_a_request_sets_in_its_context_does_not_reach_the_next_one() -> None:
    """Log lines of one request must not have the fields of another."""

    async def name() -> None:
        NAME.set("mine")

    ran = Ran({"names": name})
    assert await ran.begin(works("a", "names", "b", "c")) == 2
    assert set(ran.names.values()) == {""}
    assert await ran.begin(works("names", "names", "b", first=9)) == 3
    assert set(ran.names.values()) == {""}


async def test_a_task_that_a_handler_cancelled_is_not_used_again() -> None:
    """The cancellation would hit the next request that waits."""

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    ran = Ran({"cancels": cancel_itself})
    assert await ran.begin(works("a", "cancels", "b")) == 2
    assert ran.tasks["0-0"] is ran.tasks["1-0"] is not ran.tasks["2-0"]


async def test_requests_of_a_call_have_tasks_of_their_own() -> None:
    """Each runs with the names of its call and its trace."""
    assert await Ran().begin(works("a", "b", call="request-1")) == 2


async def test_a_request_that_was_given_away_before_it_began_is_forgotten() -> None:
    """Another consumer works on it."""
    ran, found = Ran(), works("a", "b", "c")
    found[1].abandoned = True
    ran.made.begin(found)
    await asyncio.sleep(0)
    assert list(ran.tasks) == ["0-0", "2-0"] and ran.forgotten == [found[1]]
