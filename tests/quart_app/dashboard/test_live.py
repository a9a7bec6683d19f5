"""The live page's routes over one replica: views, events, bounds."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import pytest
import redis

from mesh import MeshSettings, keys
from quart_app.dashboard import live, looks
from quart_app.dashboard.pages import VIEWS, Pages, PageView
from tests.support.nodes import Node, applications, node
from tests.support.server import Server

#: A figure of the books, without the rates below them.
BOOKED = re.compile(r"<dd>([0-9,]+)</dd>")


@pytest.fixture
def settings(server: Server) -> MeshSettings:
    """Settings of a mesh on the real server."""
    return MeshSettings(redis=server.settings)


async def listen(one: Node, view: str, ticks: int) -> list[tuple[str, dict[str, str]]]:
    """Return the first events of a view: their type and data."""
    found: list[tuple[str, dict[str, str]]] = []
    async with one.private.request(f"/mesh/events/{view}") as connection:
        text = b""
        async with asyncio.timeout(10):
            while len(found) <= ticks:
                text += await connection.receive()
                *whole, text = text.split(b"\n\n")
                found += [parsed(event.decode()) for event in whole]
        await connection.disconnect()
    return found[1:]  # the first one says how soon to reconnect


def parsed(event: str) -> tuple[str, dict[str, str]]:
    fields = dict(line.split(": ", 1) for line in event.splitlines())
    return fields.get("event", ""), json.loads(fields.get("data") or "{}")


async def test_each_view_is_a_page_of_its_own(settings: MeshSettings) -> None:
    """A view is complete without JavaScript, has nothing inline, and is never kept in a cache."""
    async with node(settings) as one:
        for name in VIEWS:
            path = "/mesh" if name == "overview" else f"/mesh/{name}"
            response = await one.private.get(path)
            html = (await response.get_data()).decode()
            assert response.status_code == 200 and one.replica.id in html, html
            assert response.headers["Cache-Control"] == "no-store"
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert "style=" not in html and "onclick" not in html
            assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in html
        assert (await one.private.get("/mesh/nothing")).status_code == 404
        assert (await one.private.get("/mesh/events/nothing")).status_code == 404
        assert (await one.public.get("/mesh")).status_code == 404


async def test_the_first_event_has_all_sections_and_later_ones_what_changed(settings: MeshSettings) -> None:
    """A viewer of a quiet mesh gets the leases only."""
    async with node(settings) as one:
        async with asyncio.timeout(5):
            while [member.state for member in await one.replica.roster()] != ["ready"]:
                await asyncio.sleep(0.01)
        first, second = await listen(one, "overview", 2)
        assert first[0] == second[0] == "sections"
        assert first[1].keys() == {"menu", "answer", "books", "places"}
        assert "menu" not in second[1] and "answer" not in second[1]


async def test_the_equation_balances_in_each_of_fifty_ticks_under_load(
    settings: MeshSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its figures are of one moment."""
    monkeypatch.setattr(looks, "LOOK_S", 0.02)
    async with node(settings) as one:

        async def load() -> None:
            for number in itertools.count(10**6):
                items = [{"value": number, "ttl": 60, "cls": one.replica.cls}]
                await one.public.post("/values", json=items)

        loads = [asyncio.create_task(load()) for _ in range(4)]
        found = await listen(one, "overview", 50)
        for each in loads:
            each.cancel()
        await asyncio.wait(loads)
        seen = [
            [int(count.replace(",", "")) for count in BOOKED.findall(data["books"])]
            for _, data in found
            if "books" in data
        ]
        assert all(accepted == sum(others) for accepted, *others in seen), seen
        assert len({accepted for accepted, *_ in seen}) > 10, "the load was seen"


async def test_what_strangers_wrote_is_shown_as_text(settings: MeshSettings) -> None:
    """Bodies, operations and reasons come from anywhere."""
    hostile = '<script>alert("x")</script>'
    async with node(settings) as one:
        redis: Any = one.replica.shared
        await redis.xadd(keys.class_requests("D"), dict.fromkeys(("op", "request", "from", "body"), hostile))
        await redis.xadd(keys.DEAD, {"reason": hostile, "stream": hostile, "deliveries": "3", "body": hostile})
        for path in ("/mesh", "/mesh/dead", "/mesh/streams?stream=D"):
            html = (await (await one.private.get(path)).get_data()).decode()
            assert hostile not in html and "&lt;script&gt;" in html, path
        response = await one.private.get("/mesh/streams", query_string={"stream": hostile})
        assert hostile not in (await response.get_data()).decode()


@pytest.mark.parametrize("path", ["/mesh", *(f"/mesh/{name}" for name in VIEWS if name != "overview")])
async def test_bytes_that_are_no_text_hide_no_view(settings: MeshSettings, server: Server, path: str) -> None:
    """Anybody with access to Redis may write them; the page shows that something is there."""
    bad = b"\xff\xed\xa0\x80"
    async with node(settings) as one:
        with redis.Redis(port=server.port) as raw:
            raw.xadd(keys.class_requests("D"), {"op": bad, "request": bad, "from": bad, "body": bad, bad: bad})
            raw.xadd(keys.DEAD, {"reason": bad, "stream": "s", "deliveries": "3", "body": bad, "op": bad})
            raw.xadd(keys.AUDIT, {"event": bad})
            raw.hset(keys.PAUSED, bad, b"1 " + bad)
            raw.hset(keys.OPERATIONS, bad, bad)
            raw.hset(keys.later("x"), mapping={"op": bad, "to": bad})
            raw.zadd(keys.LATER, {"x": one.replica.now_ms() + 60_000})
        for query in ("", "?stream=D", "?request=x"):
            response = await one.private.get(path + query)
            assert response.status_code == 200, await response.get_data()


async def test_bodies_can_be_hidden(settings: MeshSettings) -> None:
    """PAGE_BODIES=0: bodies may name people."""
    async with node(settings, page_bodies=False) as one:
        redis: Any = one.replica.shared
        await redis.xadd(keys.class_requests("D"), {"op": "x", "request": "r", "from": "f", "body": "a secret"})
        await redis.xadd(keys.DEAD, {"reason": "r", "stream": "s", "deliveries": "3", "body": "a secret"})
        for path in ("/mesh/dead", "/mesh/streams?stream=D"):
            html = (await (await one.private.get(path)).get_data()).decode()
            assert "secret" not in html and ("8 bytes" in html or "8 characters" in html)


async def test_a_replica_that_leaves_says_so_and_ends_the_stream(settings: MeshSettings) -> None:
    """The browser then connects to another one; the drain need not wait for viewers."""
    async with node(settings) as one:
        await listen(one, "dead", 1)
        one.app.reason = "this replica is about to leave"
        assert (await listen(one, "dead", 1))[0][0] == "bye"


async def test_viewers_of_one_view_share_its_sections(settings: MeshSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica renders a view once a second, however many people look at it."""
    async with node(settings) as one:
        rendered: list[str] = []
        sections = Pages.sections

        def counted(pages: Pages, view: PageView) -> dict[str, str]:
            rendered.append(view.name)
            return sections(pages, view)

        monkeypatch.setattr(Pages, "sections", counted)
        await asyncio.gather(*(listen(one, "overview", 2) for _ in range(8)), listen(one, "dead", 2))
        assert rendered.count("dead") <= 4 and rendered.count("overview") <= 4


async def test_viewers_have_a_bound(settings: MeshSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one beyond it is told to come back; a viewer that is gone makes room."""
    monkeypatch.setattr(live, "MOST_VIEWERS", 1)
    async with node(settings) as one:
        async with one.private.request("/mesh/events/overview") as connection:
            await connection.receive()
            refused = await one.private.get("/mesh/events/overview")
            assert refused.status_code == 503 and refused.headers["Retry-After"] == "5"
            await connection.disconnect()
        async with asyncio.timeout(5):
            while not await listen(one, "overview", 1):
                await asyncio.sleep(0.05)


async def test_without_a_lease_the_page_says_why() -> None:
    """503, as every route that needs the mesh."""
    assert (await applications().private.test_client().get("/mesh")).status_code == 503


async def test_it_can_be_turned_off() -> None:
    """With PAGE=0 there is no live page."""
    assert (await applications(page=False).private.test_client().get("/mesh")).status_code == 404
