"""What an operator sees of the events of movements."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from quart_app.movements.panel import panel_of, read


class OneMesh:
    """As much of a Mesh as the panel reads."""

    def __init__(self, shared: Redis, now_ms: int) -> None:
        self.shared = shared
        self.now_ms = lambda: now_ms


async def test_events_that_wait_are_counted_with_their_age(shared: Redis) -> None:
    """Without a stream nothing waits."""
    redis: Any = shared
    mesh: Any = OneMesh(shared, 9000)
    empty = await read(mesh, "events:movements", "movements")
    assert [each.value for each in empty.figures] == ["0", "0", "0"] and empty.figures[0].note == "all are stored"
    for id in ("1000-0", "2000-0", "3000-0"):
        await redis.xadd("events:movements", {"body": "{}"}, id=id)
    await redis.xgroup_create("events:movements", "movements", "0")
    await redis.xreadgroup("movements", "replica-1", {"events:movements": ">"}, count=2)
    found = await read(mesh, "events:movements", "movements")
    assert [each.value for each in found.figures] == ["3", "2", "3"]
    assert found.figures[0].note == "the oldest came 8.0 s ago" and found.figures[0].bad
    assert found.phrase == "3 events of movements not stored yet"


@pytest.mark.parametrize(("oldest_ms", "phrase"), [(None, ""), (4000, ""), (-5, "")])
def test_young_events_are_no_news(oldest_ms: int | None, phrase: str) -> None:
    """Events are stored in a moment, and a clock that is a little behind is no error."""
    found = panel_of({"length": 1, "entries-added": 7}, 0, oldest_ms)
    assert found.phrase == phrase and not found.figures[0].bad
