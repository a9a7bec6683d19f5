"""Help with curves: which replicas are asked, what a helper does, and how asker and helper end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mesh import Class, Unavailable
from mesh.raw import Replica
from quart_app.values import help as module
from quart_app.values.child import Slice
from quart_app.values.factorise import Composite, Factoring
from quart_app.values.help import (
    HELP,
    HelpForOthers,
    HelpFromOthers,
    JointWork,
    count_usable_processes,
    from_body,
    help_worker,
    to_body,
)
from quart_app.values.lanes import Call, Lane
from quart_app.values.metrics import FactorMetrics
from quart_app.values.side_by_side import with_curves
from tests.support.backend import Backend
from tests.support.waiting import eventually

BEFORE = Factoring(2 * 35 * 77, ((2, 1),), (Composite(35, 1, 10), Composite(77, 1, 4)))
SPLIT = Factoring(2 * 35 * 77, ((2, 1), (5, 1), (7, 1)), (Composite(77, 1, 4),))
DONE = Factoring(2 * 35 * 77, ((2, 1), (5, 1), (7, 1), (7, 1), (11, 1)))


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, because a replica that has just joined reads requests a moment later."""
    monkeypatch.setattr(module, "HELPER_LOOK_S", 0.1)


# What travels


@pytest.mark.parametrize("factoring", [BEFORE, SPLIT, DONE, Factoring(10**900 + 7, (), (Composite(10**900 + 7),))])
def test_a_factorisation_survives_the_way(factoring: Factoring) -> None:
    """JSON carries numbers of any size, and how many curves were run on them."""
    assert from_body(to_body(factoring)) == factoring


def test_parts_with_another_product_are_refused() -> None:
    """Factors with another product than the number never become a record."""
    with pytest.raises(ValueError, match="another product"):
        from_body({**to_body(BEFORE), "powers": [["3", 1]]})


@pytest.mark.parametrize(
    ("machine", "used", "found"),
    [("another", 4, 3), (module.MACHINE, 0, 3), (module.MACHINE, 2, 2), (module.MACHINE, 4, 0)],
)
def test_replicas_of_one_machine_share_its_cores(
    machine: str, used: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper uses only cores that the asker on the same machine leaves."""
    monkeypatch.setattr(module, "cores", lambda: 4)
    assert count_usable_processes({"machine": machine, "processes": used}, 3) == found


# A helper


class Processes:
    """Processes that run what a test says, and the helper that uses them."""

    def __init__(self, count: int = 2) -> None:
        self.spare = count
        self.calls: list[tuple[Any, ...]] = []
        self.cancelled = 0
        self.slice: Callable[[Factoring], Factoring | None] = lambda before: with_curves(before, 3)
        lane = Lane(count, niceness=19, metrics=FactorMetrics(CollectorRegistry()).lane_metrics("help"))
        self.helper = HelpForOthers(lane, lambda: self.spare, self.run)

    async def run(self, lane: Lane, call: Call) -> Slice:
        _, before, *others = call()
        self.calls.append((before, *others))
        after = self.slice(before)
        try:
            await asyncio.sleep(60 if after is None else 0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        assert after is not None
        return after, None


async def test_a_share_is_curves_in_every_spare_process_for_half_of_the_time() -> None:
    """Slices begin in the first half of the time; in the other half the last of them can end."""
    processes = Processes()
    begun = time.monotonic()
    found = await processes.helper.run_curves(BEFORE, 2, 0.2)
    assert 0.1 <= time.monotonic() - begun < 0.2
    assert found == (with_curves(BEFORE, 3 * len(processes.calls)), None)
    assert [call[0] for call in processes.calls[:4]] == [BEFORE, BEFORE, with_curves(BEFORE, 6), with_curves(BEFORE, 6)]
    assert all(left_s <= 0.2 and sieve_bits == 0 for _, left_s, sieve_bits in processes.calls)


@pytest.mark.parametrize(("spare", "most"), [(0, 2), (2, 0), (2, -1)])
async def test_without_a_spare_process_help_is_refused_at_once(spare: int, most: int) -> None:
    """A request for help never waits for a process."""
    processes = Processes()
    processes.spare = spare
    assert await processes.helper.run_curves(BEFORE, most, 10) is None
    assert processes.calls == []


async def test_a_share_ends_once_the_processes_are_needed_here() -> None:
    """The curves of a share count that ended because its replica needed the processes."""
    processes = Processes()

    def needed(before: Factoring) -> Factoring:
        processes.spare = 0
        return with_curves(before, 1)

    processes.slice = needed
    async with asyncio.timeout(5):
        assert await processes.helper.run_curves(BEFORE, 1, 60) == (with_curves(BEFORE, 1), None)


async def test_a_share_ends_with_a_divisor() -> None:
    """A helper answers as soon as it has a divisor."""
    processes = Processes()
    processes.slice = lambda before: SPLIT
    async with asyncio.timeout(5):
        assert await processes.helper.run_curves(BEFORE, 2, 60) == (SPLIT, None)


@contextlib.asynccontextmanager
async def long_share(processes: Processes) -> AsyncIterator[asyncio.Task[Slice | None]]:
    processes.slice = lambda before: None
    share = asyncio.create_task(processes.helper.run_curves(BEFORE, 2, 60))
    while len(processes.calls) < 2:
        await asyncio.sleep(0)
    yield share


async def test_one_number_at_a_time_is_helped() -> None:
    """A helper refuses a second number while it has processes left."""
    processes = Processes(4)
    async with long_share(processes) as share:
        assert await processes.helper.run_curves(BEFORE, 2, 10) is None
        share.cancel()
        await asyncio.wait([share])
    processes.slice = lambda before: SPLIT
    assert await processes.helper.run_curves(BEFORE, 2, 10) == (SPLIT, None)


async def test_a_share_that_is_cancelled_kills_its_processes() -> None:
    """A cancelled request kills the processes that work on it."""
    processes = Processes()
    async with long_share(processes) as share:
        share.cancel()
        with pytest.raises(asyncio.CancelledError):
            await share
    assert processes.cancelled == 2


async def test_a_helper_that_leaves_refuses_what_it_has_begun() -> None:
    """A leaving helper answers its request, so that the asker goes on with others."""
    processes = Processes()
    async with long_share(processes) as share:
        await processes.helper.stop()
        assert await share is None
    assert processes.cancelled == 2


# Asking


class FakeHelper:
    """Answers requests for help as a test says; it counts those that began and those that were cancelled.

    Like a real one it refuses a second request at the same time.
    """

    def __init__(self, answer: Callable[[Factoring], Slice | None] | None) -> None:
        self.answer = answer
        self.begun: list[Factoring] = []
        self.cancelled = 0
        self.refused = 0
        self._busy = False

    async def run_curves(self, factoring: Factoring, most: int, time_s: float) -> Slice | None:
        if self._busy:
            self.refused += 1
            return None
        self.begun.append(factoring)
        self._busy = True
        try:
            await asyncio.sleep(60 if self.answer is None else 0.05)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._busy = False
        assert self.answer is not None
        return self.answer(factoring)


async def join(backend: Backend, helper: FakeHelper, cls: str = "A", **settings: Any) -> Replica:
    joined: list[Replica] = []
    worker = help_worker(helper, 1, lambda: joined[0])  # type: ignore[arg-type]
    joined.append(await backend.join(worker, class_=cls, **settings))
    return joined[0]


async def begun(helper: FakeHelper, count: int = 1) -> None:
    async def reached() -> bool:
        return len(helper.begun) >= count

    await eventually(reached)


async def cancelled(helper: FakeHelper) -> None:
    async def over() -> bool:
        return helper.cancelled == len(helper.begun)

    await eventually(over)


async def test_every_other_replica_of_the_class_helps(backend: Backend) -> None:
    """All others of the class work while the block lasts; then the mesh ends their work within a second."""
    helpers = [FakeHelper(None) for _ in range(4)]
    asker, *_ = [await join(backend, helper, cls) for helper, cls in zip(helpers, "AAAB", strict=True)]
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1):
        for helper in helpers[1:3]:
            await begun(helper)
        ending = time.monotonic()
    for helper in helpers[1:3]:
        assert helper.begun == [BEFORE]
        await cancelled(helper)
    assert time.monotonic() - ending < 1
    assert helpers[0].begun == helpers[3].begun == []
    assert (await asker.books())["in_flight"] == 0


async def test_curves_of_helpers_count_and_they_go_on_from_there(backend: Backend) -> None:
    """Each request tells how many curves all replicas have run, the asker too."""
    helper = FakeHelper(lambda before: (with_curves(before, 5), None))
    asker = await join(backend, FakeHelper(None))
    await join(backend, helper)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        await begun(helper)
        help.add(BEFORE, (with_curves(BEFORE, 2), None))
        await begun(helper, 3)
    assert helper.begun[:2] == [BEFORE, with_curves(BEFORE, 7)]
    assert not help.first_split.done()


@pytest.mark.parametrize(("found", "factors"), [(SPLIT, None), (DONE, "2 5 7 7 11")])
async def test_the_first_divisor_of_a_helper_is_taken(backend: Backend, found: Factoring, factors: str | None) -> None:
    """The asker takes a divisor, with the factors as text if nothing is left to be split, and asks no more."""
    helper = FakeHelper(lambda before: (found, None))
    asker = await join(backend, FakeHelper(None))
    await join(backend, helper)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        assert await asyncio.wait_for(help.first_split, 10) == (found, factors)
        await asyncio.sleep(0.3)
    assert len(helper.begun) == 1


async def test_a_replica_without_others_asks_nobody(backend: Backend) -> None:
    """Replicas of another release are not asked, because they do not know the operation."""
    asker = await join(backend, FakeHelper(None))
    await backend.join(class_="A")
    accepted = (await asker.books())["accepted"]
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1):
        await asyncio.sleep(0.3)
    assert (await asker.books())["accepted"] == accepted


async def test_who_is_refused_looks_again_later(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The asker sends two requests at each look while the helper is busy, and gets help later."""
    monkeypatch.setattr(module, "HELPER_LOOK_S", 0.3)
    helper = FakeHelper(lambda before: None)
    asker = await join(backend, FakeHelper(None))
    await join(backend, helper)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        await asyncio.sleep(0.8)
        # At once, after 0.3 s and after 0.6 s: one request for the other replica, and one for the asker itself.
        assert 3 <= (await asker.books())["accepted"] <= 6
        helper.answer = lambda before: (SPLIT, None)
        await asyncio.wait_for(help.first_split, 10)


async def test_a_helper_that_fails_is_none(backend: Backend) -> None:
    """The asker computes alone after an error of its helper, and looks again."""

    def fails(before: Factoring) -> Slice:
        raise Unavailable("the processes died")

    helper = FakeHelper(fails)
    asker = await join(backend, FakeHelper(None))
    await join(backend, helper)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        await begun(helper, 2)
        assert not help.first_split.done()
        assert help.factoring == BEFORE


async def test_a_helper_that_dies_costs_its_curves(backend: Backend) -> None:
    """A replica that joins helps in place of one that died."""
    dying = FakeHelper(None)
    asker = await join(backend, FakeHelper(None))
    await join(backend, dying)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        await begun(dying)
        await backend.kill(1)
        await join(backend, FakeHelper(lambda before: (SPLIT, None)))
        assert await asyncio.wait_for(help.first_split, 20) == (SPLIT, None)


async def test_a_wrong_answer_ends_the_help_and_not_the_number(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names an answer that is wrong, and the number goes on without help."""
    errors: list[str] = []
    monkeypatch.setattr(module.log, "error", lambda event, **_: errors.append(event))
    wrong = Factoring(BEFORE.number, BEFORE.powers, (Composite(34),))
    asker = await join(backend, FakeHelper(None))
    helper = FakeHelper(lambda before: (wrong, None))
    await join(backend, helper)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        await begun(helper)
        await asyncio.sleep(0.3)
        assert not help.first_split.done()
    assert errors == ["other replicas could not be asked for curves"]


async def test_a_replica_that_has_left_asks_nobody(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """An asker without a membership logs no error."""
    errors: list[str] = []
    monkeypatch.setattr(module.log, "error", lambda event, **_: errors.append(event))
    asker = await join(backend, FakeHelper(None))
    await join(backend, FakeHelper(lambda before: (SPLIT, None)))
    await backend.stop(0)
    async with HelpFromOthers(lambda: asker).ask_for_curves(BEFORE, 1) as help:
        await asyncio.sleep(0.3)
        assert not help.first_split.done()
    assert errors == []


async def test_a_request_of_ones_own_is_refused(backend: Backend) -> None:
    """An asker refuses a request of its own that it reads from the stream of its class."""
    helper = FakeHelper(None)
    asker = await join(backend, helper)
    body = {**to_body(BEFORE), "asker": asker.id, "machine": "another", "processes": 1}
    assert await asker.call(Class("A"), HELP, body) == {}
    assert helper.begun == []


async def test_a_replica_that_handles_one_request_at_a_time_helps_nobody(backend: Backend) -> None:
    """With `MESH_CONCURRENCY=1` the requests of the class would wait for the curves."""
    helper = FakeHelper(None)
    replica = await join(backend, helper, concurrency=1)
    body = {**to_body(BEFORE), "asker": "another", "machine": "another", "processes": 1}
    assert await replica.call(Class("A"), HELP, body) == {}
    assert helper.begun == []


async def test_the_first_hit_stays() -> None:
    """The first of two divisors is taken."""
    help = JointWork(BEFORE)
    help.add(BEFORE, (SPLIT, None))
    help.add(BEFORE, (DONE, "2 5 7 7 11"))
    assert help.first_split.result() == (SPLIT, None)
