"""How long requests took, by operation."""

from __future__ import annotations

from mesh import Class, keys
from mesh.raw import Body, Effects, Request, Store, Worker
from mesh.requests.durations import BOUNDS_S, MOST_UNCOUNTED, Durations
from tests.support.backend import Backend


def test_a_duration_falls_into_the_interval_that_ends_at_or_after_it() -> None:
    """As in Prometheus, the upper end belongs to its interval, and the last interval has no end."""
    durations = Durations()
    for seconds in (0.0, 0.0005, 0.0006, 60.0, 61.0):
        durations.add("count.put", seconds, 0.0)
    histogram, _ = durations.by_op["count.put"]
    assert histogram.counts[:2] == [2, 1] and histogram.counts[-2:] == [1, 1]
    assert len(histogram.counts) == len(BOUNDS_S) + 1 and round(histogram.sum_s, 4) == 121.0011


def test_every_request_counts_once() -> None:
    """They are counted many at a time, and in any case before somebody reads."""
    durations = Durations()
    for number in range(1, 2 * MOST_UNCOUNTED + 2):
        durations.add("count.put", 0.1, 0.0)
        if number > 2 * MOST_UNCOUNTED - 2:
            assert sum(durations.by_op["count.put"][0].counts) == number


def test_no_request_takes_less_time_than_its_handler() -> None:
    """The clock of the acceptance is an estimate, and in ms."""
    durations = Durations()
    durations.add("count.put", -0.002, 0.004)
    total, work = durations.by_op["count.put"]
    assert total.sum_s == work.sum_s == 0.004


async def test_only_operations_that_are_served_are_counted(backend: Backend) -> None:
    """Anybody may write an entry with a name of their own; it must not become a series."""
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        return {}

    one = await backend.join(worker)
    await one.call(Class(one.cls), "count.put", {})
    redis = backend.redis()
    await redis.hincrby(keys.BOOKS, "accepted", 1)
    await redis.xadd(f"mesh:requests:{one.cls}", {"op": "made.up", "request": "r", "from": "f", "body": "{}"})
    for _ in range(2):
        await one.call(Class(one.cls), "count.put", {})
    await redis.aclose()
    assert {op: sum(work.counts) for op, (_, work) in one.durations.by_op.items()} == {"count.put": 3}
