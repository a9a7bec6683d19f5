"""Figures: what Redis holds, as the page reads it."""

from __future__ import annotations

import pytest

from mesh import Class, GivenUp, keys
from mesh.raw import Effects, Worker
from mesh.requests.protocol import Request
from quart_app.dashboard.figures import HOUR_MS, LONGEST_GAP_MS, FiguresReader, History
from tests.support.backend import Backend


def test_rates_are_known_from_the_second_look_on() -> None:
    """What is not known is not drawn as zero."""
    history = History()
    assert history.add(1000, {"answered": 5}) == {}
    assert history.add(3000, {"answered": 25}) == {"answered": [10.0]}
    assert history.add(4000, {"answered": 25, "new": 9}) == {"answered": [10.0, 0.0]}


def test_a_pause_ends_the_history() -> None:
    """Between two visits nobody has looked; a clock that steps back counts as a pause."""
    history = History()
    history.add(1000, {"answered": 5})
    history.add(2000, {"answered": 6})
    assert history.add(2000 + LONGEST_GAP_MS + 1, {"answered": 9000}) == {}
    assert history.add(1500, {"answered": 9001}) == {}


def test_the_last_minute_is_kept() -> None:
    """Sixty rates, the newest last; a counter that was reset does not give a negative rate."""
    history = History()
    for second in range(100):
        rates = history.add(second * 1000, {"answered": second * second})
    assert len(rates["answered"]) == 60
    assert rates["answered"][-1] == 99**2 - 98**2
    assert history.add(100_000, {"answered": 0})["answered"][-1] == 0


def worker_that_fails() -> Worker:
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: object, transaction: Effects) -> None:
        raise ValueError("poison")

    return worker


@pytest.mark.slow
async def test_figures_of_a_real_mesh(mesh_of: Backend) -> None:
    """Two replicas and one request that died give figures of places, streams, books and dead letters."""
    one, _two = await mesh_of(2, worker_that_fails(), class_="A", claim_idle_ms=200, databases=4)
    with pytest.raises(GivenUp):
        await one.call(Class("A"), "count.put", {"n": 1})
    found = await FiguresReader(one).read()
    assert [(place.database, place.state) for place in found.places] == [
        (0, "free"), (1, "ready"), (2, "ready"), (3, "free"),
    ]  # fmt: skip
    assert all(0 < place.lease_ms <= 3000 for place in found.places if place.member)
    assert {stream.name for stream in found.streams} == {"A", "B", "C", "D", "db0", "db1", "db2", "db3"}
    assert {consumer.replica for stream in found.streams[:1] for consumer in stream.consumers} >= {one.id}
    assert found.books["accepted"] == found.books["dead"] == 1 == found.dead
    (letter,) = found.recent_dead
    assert letter.stream == keys.class_requests("A") and letter.op == "count.put"
    assert 0 <= found.at_ms - letter.at_ms < HOUR_MS
