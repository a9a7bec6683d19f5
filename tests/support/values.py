"""Replicas with /values whose hard numbers are done when a test says so, and what tests ask about jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import gmpy2

from mesh import DeadlineExceeded
from mesh.raw import Replica, Worker
from quart_app.values import asking, hard_values
from quart_app.values.computing import Computing
from quart_app.values.errands import Errands
from quart_app.values.factorise import find_factors
from quart_app.values.handlers import values_worker
from quart_app.values.jobs import Job, Jobs, ValueOutcome
from quart_app.values.models import PlainItem
from quart_app.values.pace import Pace
from tests.support.backend import Backend
from tests.support.waiting import eventually

P, Q = (int(gmpy2.next_prime(10**n)) for n in (12, 14))
HARD = P * Q
#: The answer for the hard value.
DONE = {str(HARD): f"{P} {Q}"}


class Pool:
    """A pool whose numbers are done when the test says so; it counts what it computes."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.patient: list[bool] = []
        self.quick: dict[int, str] = {}
        self.may_end = asyncio.Event()
        self.killed = 0

    async def factorise_quickly(self, number: int) -> str | None:
        return self.quick.get(number)

    def expected_s(self, number: int) -> float:
        return 60.0

    def progress(self, number: int) -> None:
        return None

    async def factorise_small(self, numbers: Sequence[int]) -> list[str]:
        return [find_factors(number) for number in numbers]

    async def factorise(self, number: int, timeout_s: float, *, patient: bool = False) -> str:
        self.computed.append(number)
        self.patient.append(patient)
        try:
            async with asyncio.timeout(timeout_s):
                await self.may_end.wait()
        except TimeoutError:
            raise DeadlineExceeded("late", factors=[], unfactored=[number]) from None
        except asyncio.CancelledError:
            self.killed += 1
            raise
        return find_factors(number)


class Values:
    """Members of one class that factorise numbers in one pool."""

    def __init__(self, members: Backend) -> None:
        self.members = members
        self.pool = Pool()
        self.replicas: list[Replica] = []
        self.store_room: Callable[[int], None] = lambda _: None

    async def join(self, count: int, concurrency: int = 1, **settings: Any) -> list[Replica]:
        for _ in range(count):
            place = len(self.replicas)

            def here(place: int = place) -> Replica:
                return self.replicas[place]

            computing = Computing(here, self.pool)  # type: ignore[arg-type]
            worker: Worker = values_worker(computing, Errands(here, computing.progress), Pace(), self._store_room)
            self.replicas.append(await self.members.join(worker, class_="A", concurrency=concurrency, **settings))
        return self.replicas

    def _store_room(self, amount: int) -> None:
        self.store_room(amount)

    def put(self, asker: Replica, value: int = HARD, ttl: int = 60, to: Any = None, ms: int = 20_000) -> Any:
        """Put a value as the route does, in a task; `to` is the address of the first request."""
        item = PlainItem(str(value), ttl, "A")
        first = hard_values.ask_for_chunk("A", [{"value": item.value, "ttl": ttl}])
        first.to = to or first.to

        async def put() -> dict[str, str]:
            factors, answers = await asking.put(asker, [first], {item.value: item}, ms, Pace())
            for answer in answers:
                if answer.error is not None:
                    raise answer.error
            return factors

        return asyncio.create_task(put())

    async def in_lane(self, value: int = HARD) -> tuple[int, int]:
        """Return how many requests of a value's lane run, and how many wait."""
        name, bus = f"{hard_values.HARD}:A:{value}", self.replicas[-1].shared
        return await bus.hlen(f"mesh:running:{name}"), await bus.llen(f"mesh:lane:{name}")

    async def begun(self) -> bool:
        """Return whether the computation of a value has begun."""
        return bool(self.pool.computed)


async def state(jobs: Jobs, replica: Replica, id: str) -> str:
    found = await jobs.get(replica, id)
    return "gone" if found is None else found.state(replica.now_ms())


async def until(jobs: Jobs, replica: Replica, id: str, wanted: str) -> Job:
    """Return the job once it has this state."""

    async def reached() -> bool:
        return await state(jobs, replica, id) == wanted

    await eventually(reached, 15)
    found = await jobs.get(replica, id)
    assert found is not None
    return found


async def outcomes(jobs: Jobs, replica: Replica, job: Job) -> list[ValueOutcome]:
    return [outcome async for part in jobs.outcomes(replica, job) for outcome in part]
