"""Turns at contended keys: first come, first served, without deadlocks."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mesh import Class, Contended, keys
from mesh.raw import Effects, Request, Store, Worker
from mesh.requests import turns
from mesh.requests.turns import Turns
from mesh.testing.clock import virtual_time
from tests.support.backend import Backend


def made() -> tuple[Turns[str], list[str]]:
    begun: list[str] = []
    return Turns(begun.append), begun


async def test_those_that_met_a_conflict_run_one_after_the_other() -> None:
    """They run in the order of their conflicts. A holder that has another conflict keeps its turn."""
    taken, begun = made()
    for work in "abc":
        taken.take(work, "key")
    assert begun == ["a"]
    taken.take("a", "key")
    assert begun == ["a", "a"]
    assert taken.leave("a") is False
    assert begun == ["a", "a", "b"]
    taken.leave("b")
    taken.leave("c")
    assert begun == ["a", "a", "b", "c"]
    taken.take("d", "key")
    assert begun[-1] == "d", "an empty queue is gone"
    assert taken.conflicts_by_key == {"key": 5}


async def test_keys_do_not_wait_for_each_other() -> None:
    """A request with a conflict at another key passes its turn on."""
    taken, begun = made()
    for work, key in (("a", "one"), ("b", "one"), ("c", "two")):
        taken.take(work, key)
    assert begun == ["a", "c"]
    taken.take("a", "two")
    assert begun == ["a", "c", "b"], "a waits at the other key now"
    taken.leave("c")
    assert begun == ["a", "c", "b", "a"]


async def test_one_that_waits_may_leave() -> None:
    """A request that leaves gives up its place, and the others do not wait for it."""
    taken, begun = made()
    for work in "abc":
        taken.take(work, "key")
    assert taken.leave("b") is True
    assert taken.leave("b") is False
    taken.leave("a")
    assert begun == ["a", "c"]


async def test_a_holder_that_takes_long_keeps_nobody_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn passes to the next request, and from there on without a wait, so that turns never cost time."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.02)
    taken, begun = made()
    for work in "abcd":
        taken.take(work, "key")
    async with asyncio.timeout(5):
        while len(begun) < 2:
            await asyncio.sleep(0.01)
    taken.leave("b")
    assert begun == ["a", "b", "c"]
    taken.take("a", "key")
    assert begun == ["a", "b", "c"], "a ran on without the turn, and waits for another one now"
    taken.leave("c")
    taken.leave("d")
    assert begun == ["a", "b", "c", "d", "a"]
    taken.leave("a")
    taken.take("e", "key")
    assert begun[-1] == "e"


class Contest:
    """One value that many requests read and write; each run takes so long between the two."""

    def __init__(self, run_s: Callable[[str], float]) -> None:
        self.run_s = run_s
        self.turns: Turns[str] = Turns(self.begin)
        self.value = self.runs = 0
        self.conflicts: Counter[str] = Counter()
        self.ended_at: dict[str, float] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: str) -> None:
        """Run a request in a task."""
        self.tasks.add(asyncio.create_task(self.run(work)))

    async def run(self, work: str) -> None:
        """Read, work, and write unless another one has written."""
        self.runs += 1
        read = self.value
        await asyncio.sleep(self.run_s(work))
        if read != self.value:
            self.conflicts[work] += 1
            self.turns.take(work, "key")
        else:
            self.value += 1
            self.ended_at[work] = asyncio.get_running_loop().time()
            self.turns.leave(work)

    async def all_of(self, *works: str) -> float:
        """Begin all at once, and return how long they took."""
        began = asyncio.get_running_loop().time()
        for work in works:
            self.begin(work)
        while len(self.ended_at) < len(works):
            await asyncio.sleep(0.05)
        return max(self.ended_at.values()) - began


@pytest.mark.parametrize("run_s", [0.001, 0.1, 0.3, 2.0, 30.0])
async def test_a_slow_machine_only_makes_it_slower(run_s: float) -> None:
    """However long a run takes, each request runs two or three times, and none loses again and again."""
    with virtual_time():
        contest = Contest(lambda _: run_s * random.uniform(0.5, 1.5))
        took = await contest.all_of(*map(str, range(200)))
    assert (contest.value, contest.turns._queues, contest.turns._key_of) == (200, {}, {})
    assert contest.runs <= 600
    assert max(contest.conflicts.values()) <= 20
    assert took <= 250 * run_s


async def test_a_slow_request_holds_up_the_quick_ones_for_a_moment_only() -> None:
    """A request that waits for something else loses its turn."""
    with virtual_time():
        contest = Contest(lambda work: 20.0 if work == "slow" else 0.01)
        await contest.all_of("slow", *map(str, range(100)))
    quick = max(at for work, at in contest.ended_at.items() if work != "slow")
    assert contest.ended_at["slow"] - quick > 15
    assert quick - min(contest.ended_at.values()) < 100 * 0.02 + 2 * turns.PATIENCE_S


async def test_the_keys_that_are_counted_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys with the most conflicts are kept."""
    monkeypatch.setattr(turns, "MOST_KEYS", 10)
    taken, _ = made()
    for n in range(30):
        for work in (f"{n}", "hot"):
            taken.take(work, "hot" if work == "hot" else f"key {n}")
    assert len(taken.conflicts_by_key) <= 10 and taken.conflicts_by_key["hot"] == 30


def counting() -> tuple[Worker, list[str]]:
    worker, runs = Worker(), []

    @worker.handles("hot.add")
    async def add(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        runs.append(request.id)
        seen = await store.shared.get("hot")
        transaction.shared.expect("hot", seen)
        transaction.shared.set("hot", int(seen or 0) + 1)
        return {"n": int(seen or 0) + 1}

    @worker.handles("hot.never")
    async def never(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        runs.append(request.id)
        transaction.expect("other", "never", field="f")
        return {}

    @worker.handles("hot.tell")
    async def tell(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        transaction.send(Class("A"), "hot.never", {})
        return {}

    return worker, runs


async def test_a_hot_key_costs_few_runs(backend: Backend) -> None:
    """Each request runs about twice; all at once would need n²/2 runs. The replica's statistics name the key."""
    worker, runs = counting()
    one = await backend.join(worker, deadline_ms=30_000)
    answers = await asyncio.gather(*(one.call(Class("A"), "hot.add", {}) for _ in range(150)))
    assert sorted(answer["n"] for answer in answers) == list(range(1, 151))
    assert 150 < len(runs) <= 600
    assert one.conflicts() == {"shared:hot": len(runs) - 150}


async def test_a_request_that_never_gets_through_is_refused_with_the_key(backend: Backend) -> None:
    """The error comes at once and names the key. A request without a caller becomes a dead letter."""
    worker, runs = counting()
    one = await backend.join(worker)
    with pytest.raises(Contended, match=r"changed 100 times .* use add\(\)") as caught:
        await one.call(Class("A"), "hot.never", {})
    assert (caught.value.key, caught.value.conflicts, len(runs)) == ("db1:other f", 100, 100)
    books = await one.books()
    assert (books["answered"], books["dead"], books["in_flight"]) == (1, 0, 0)
    await one.call(Class("A"), "hot.tell", {})
    client = backend.redis()
    async with asyncio.timeout(20):
        while not await client.xlen(keys.DEAD):
            await asyncio.sleep(0.02)
    ((_, letter),) = await client.xrange(keys.DEAD)
    assert letter["reason"].startswith("db1:other f changed 100 times")
    await client.aclose()


async def test_requests_that_wait_for_their_turn_expire(backend: Backend) -> None:
    """A request whose deadline passes while it waits for its turn ends, and makes room for others."""
    worker, release = Worker(), asyncio.Event()

    @worker.handles("hot.slow")
    async def slow(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        seen = await store.shared.get("hot")
        transaction.shared.expect("hot", seen)
        transaction.shared.set("hot", int(seen or 0) + 1)
        if seen is not None:
            await release.wait()
        return {}

    one = await backend.join(worker)
    calls = (one.call(Class("A"), "hot.slow", {}, deadline_ms=700) for _ in range(20))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, dict) for answer in answers) == 1
    async with asyncio.timeout(10):
        while one.statistics()["class_in_progress"]:
            await asyncio.sleep(0.02)
    books = await one.books()
    assert (books["answered"], books["expired"], books["in_flight"]) == (1, 19, 0)
