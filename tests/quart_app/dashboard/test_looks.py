"""What viewers share, and what a panel says when it cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import Mesh, MeshSettings, Unavailable, keys
from mesh.control import Journeys, JourneyStep
from quart_app.dashboard import looks as module
from quart_app.dashboard.looks import Looks
from quart_app.panels import Panel
from quart_app.service import Service
from tests.support.nodes import node
from tests.support.server import Server


@pytest.fixture
def settings(server: Server) -> MeshSettings:
    """Settings of a mesh on the real server."""
    return MeshSettings(redis=server.settings)


async def test_a_panel_that_cannot_be_read_says_why(settings: MeshSettings) -> None:
    """The others are shown as ever; what waits for its time is always there."""
    asked = 0

    async def well(mesh: Mesh) -> Panel:
        nonlocal asked
        asked += 1
        return Panel("well", "A panel", phrase="all well")

    async def broken(mesh: Mesh) -> Panel:
        raise Unavailable("the shared allowance cannot be used")

    async with node(settings) as one:
        looks = Looks(
            one.app.context.mesh, [Service("well", panel=well), Service("broken", panel=broken), Service("none")]
        )
        view = await looks.services.newest()
        assert [(panel.title, panel.note) for panel in view.panels[:2]] == [
            ("A panel", ""), ("Broken", "the shared allowance cannot be used"),
        ]  # fmt: skip
        assert [panel.name for panel in view.panels] == ["well", "broken", "later"]
        await looks.services.newest()
        assert asked == 1, "once a second, for all viewers"
        looks.expire()
        await looks.services.newest()
        assert asked == 2


async def test_the_last_hour_is_read_from_the_books_of_each_minute(settings: MeshSettings) -> None:
    """The oldest minute comes first, and the books are read every ten seconds at most."""
    async with node(settings) as one:
        redis: Any = one.replica.shared
        await redis.delete(keys.MINUTES)
        for minute, count in ((1, 5), (2, 65), (3, 66)):
            await redis.xadd(keys.MINUTES, {"answered": count}, id=f"{minute * 60_000}-0")
        looks = Looks(one.app.context.mesh, [])
        assert await looks.minutes.newest() == [60, 1]
        await redis.delete(keys.MINUTES)
        assert await looks.minutes.newest() == [60, 1]


async def test_the_overview_reads_the_newest_answers_every_ten_seconds(
    settings: MeshSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest answers are the dearest read of the page, and the overview needs only their times."""
    asked = 0

    async def newest(self: Journeys, most: int) -> list[JourneyStep]:
        nonlocal asked
        asked += 1
        return []

    monkeypatch.setattr(Journeys, "newest", newest)
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    async with node(settings) as one:
        looks = Looks(one.app.context.mesh, [])
        for _ in range(3):
            await looks.overview_steps.newest()
        assert asked == 1
        for _ in range(3):
            await looks.steps.newest()
        assert asked == 4


async def test_an_event_is_made_once_for_all_who_follow_a_view(settings: MeshSettings) -> None:
    """An event has the sections that differ, and none if nothing does."""
    async with node(settings) as one:
        looks = Looks(one.app.context.mesh, [])
        before, now = {"a": "1", "b": "2"}, {"a": "1", "b": "3"}
        event = looks.event(before, now)
        assert event == 'event: sections\ndata: {"b": "3"}\n\n'
        assert looks.event(before, now) is event
        assert looks.event(dict(now), now) == "event: sections\ndata: {}\n\n"
