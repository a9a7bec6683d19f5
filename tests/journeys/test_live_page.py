"""The live page in a real browser, over real replicas."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, expect

from mesh import keys
from tests.support.browser import needs_chromium, tab
from tests.support.replicas import Replicas

pytestmark = [needs_chromium, pytest.mark.slow]

WIDTHS = (360, 390, 768, 1280, 1600)
VIEWS = ("/mesh", "/mesh/streams", "/mesh/requests", "/mesh/dead", "/mesh/services")


async def test_only_open_pages_are_read_for(chromium: Browser, replicas: Replicas) -> None:
    """While pages are open one replica reads once a second; with none, Redis gets no such command."""
    (process,) = await replicas(1, {"MESH_CLASS": "A"})

    def looks() -> int:
        with replicas.server.redis() as admin:
            return int(admin.info("commandstats").get("cmdstat_xinfo|stream", {}).get("calls", 0))

    async with tab(chromium) as first, tab(chromium) as second:
        for opened in (first, second):
            await opened.page.goto(f"{process.private}/mesh")
        before = looks()
        await asyncio.sleep(4)
        assert 2 * 20 <= looks() - before <= 6 * 20, "20 streams, about once a second"
    await asyncio.sleep(2)
    before = looks()
    await asyncio.sleep(2)
    assert looks() == before


def add_letters(replicas: Replicas, count: int, reason: str) -> None:
    """Add dead letters of class D, which has no replica here, so that a replayed one stays on its stream."""
    letter = {"kind": "request", "stream": keys.class_requests("D"), "id": "1-0", "reason": reason, "deliveries": "3"}
    with replicas.server.redis() as admin, admin.pipeline(transaction=True) as pipeline:
        for name in ("accepted", "dead"):
            pipeline.hincrby(keys.BOOKS, name, count)
        for number in range(count):
            pipeline.xadd(keys.DEAD, {**letter, "op": "stock.take", "body": f'{{"product": {number}}}'})
        pipeline.execute()


async def test_a_group_of_dead_letters_is_replayed_whole(chromium: Browser, replicas: Replicas) -> None:
    """The page shows 20 of 213 letters. All 213 leave, the books balance, and the audit log has one entry."""
    (process,) = await replicas(1, {"MESH_CLASS": "A", "PAGE_PASSWORD": "correct horse"})
    add_letters(replicas, 213, "no such warehouse")
    add_letters(replicas, 2, "another reason")
    async with tab(chromium, operator="correct horse") as opened:
        page = opened.page
        await page.goto(f"{process.private}/mesh/sign-in")
        await expect(page.locator(".letters:first-child tbody tr")).to_have_count(20)
        await page.get_by_role("link", name="Replay all 213").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Replay 213 dead letters?")
        await expect(page.locator("#answer")).to_contain_text("no such warehouse")
        await page.get_by_role("button", name="Replay").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("213 replayed.")
        await page.get_by_role("link", name="Back to dead letters").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("2 dead letters")
        await page.goto(f"{process.private}/mesh")
        await expect(page.locator("#books-title")).to_have_text("The books balance")
        await expect(page.locator(".books dd:not(.rate)").nth(2)).to_have_text("213")
    with replicas.server.redis() as admin:
        ((_, entry),) = admin.xrange(keys.AUDIT)
        assert (entry["outcome"], entry["actor"]) == ("213 replayed, 0 gone", "operator")


async def test_one_request_has_a_timeline(chromium: Browser, replicas: Replicas) -> None:
    """A gather has a lane for each database it asks; a POST is found by the X-Request-Id that its client sent."""
    one, two = [(await replicas(1, {"MESH_CLASS": cls}))[0] for cls in "AB"]
    other = [{"value": 2 * (2**61 - 1), "ttl": 60, "cls": "B"}]
    assert (await replicas.client.post(f"{two.public}/values", json=other)).status_code == 200
    items = [{"value": 2**61 - 1, "ttl": 60, "cls": "A"}]
    posted = await replicas.client.post(f"{two.public}/values", json=items, headers={"X-Request-Id": "my-post"})
    assert posted.status_code == 200 and ";class=A" in posted.headers["Mesh-Place"]
    assert "work;dur=" in posted.headers["Server-Timing"]
    found = await replicas.client.get(f"{one.public}/values/{2**61 - 1}", headers={"X-Request-Id": "my-get"})
    assert found.headers["Mesh-Place"].count("db=") == 2
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{one.private}/mesh/requests?request=my-post")
        await expect(page.locator(".lane")).to_have_count(1)
        await expect(page.locator(".lane")).to_contain_text("values.put")
        await page.goto(f"{one.private}/mesh/requests")
        await page.get_by_label("Id, name or X-Request-Id").fill("my-get")
        await page.get_by_role("button", name="Find").click()
        await expect(page.locator(".lane")).to_have_count(2)
        await expect(page.locator(".timeline .work").first).to_be_visible()
        await page.goto(f"{one.private}/mesh/requests")
        for status, shown in (("ok", "values.put"), ("refused", "No replica keeps such a reply.")):
            await page.get_by_label("Operation", exact=True).fill("values.put")
            await page.get_by_label("Status", exact=True).fill(status)
            await page.get_by_role("button", name="Find").click()
            await expect(page.locator("#newest h2")).to_contain_text(f"with the status {status}")
            await expect(page.locator("#newest tbody")).to_contain_text(shown)


async def test_an_operation_is_paused_and_a_replica_drained(chromium: Browser, replicas: Replicas) -> None:
    """Calls get 503 while it is paused; the drained process ends by itself."""
    one, two = await replicas(2, {"MESH_CLASS": "A", "PAGE_PASSWORD": "correct horse"})
    items = [{"value": 6, "ttl": 60, "cls": "A"}]
    await replicas.client.post(f"{one.public}/values", json=items)
    gone = next(member for member in await replicas.roster() if member.public == two.public.removeprefix("http://"))
    async with tab(chromium, operator="correct horse") as opened:
        page = opened.page
        await page.goto(f"{one.private}/mesh/sign-in")
        await page.goto(f"{one.private}/mesh/services")
        served = page.locator('[id="op-values.put"]')
        await expect(served.locator("td").nth(0)).to_have_text("command")
        await expect(served.locator("td").nth(1)).to_have_text("1, 2")
        await page.get_by_role("link", name="Pause values.put", exact=True).click()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("It is paused within a second.")
        await asyncio.sleep(1.5)
        refused = await replicas.client.post(f"{one.public}/values", json=items)
        assert refused.status_code == 503 and "paused by an operator" in refused.json()["detail"]
        await page.goto(f"{one.private}/mesh/services")
        await expect(served).to_contain_text("by operator")
        resume = await page.get_by_role("link", name="Resume values.put", exact=True).bounding_box()
        assert resume is not None and resume["x"] + resume["width"] < 1280, "its act is seen without scrolling"
        await page.get_by_role("link", name="Resume values.put", exact=True).click()
        await page.get_by_role("button", name="Resume").click()
        await page.goto(f"{one.private}/mesh/services")
        await page.get_by_role("link", name=f"Drain {gone.replica}").click()
        await expect(page.locator("#answer")).to_contain_text("1 replica of class A will be left")
        await page.get_by_label("Type drain to confirm").fill("drain")
        await page.get_by_role("button", name="Drain").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("It begins to drain within a second.")
    assert await two.ended(20) == 0
    assert (await replicas.client.post(f"{one.public}/values", json=items)).status_code == 200


async def test_discarding_needs_a_typed_word(chromium: Browser, replicas: Replicas) -> None:
    """The word can be typed with the keyboard alone, and without JavaScript."""
    (process,) = await replicas(1, {"MESH_CLASS": "A", "PAGE_PASSWORD": "correct horse"})
    add_letters(replicas, 3, "no such warehouse")
    for javascript, left in ((True, 2), (False, 1)):
        async with tab(chromium, operator="correct horse", javascript=javascript) as opened:
            page = opened.page
            await page.goto(f"{process.private}/mesh/sign-in")
            await page.locator("[aria-label^=Discard]").first.focus()
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("heading", level=1)).to_have_text("Discard 1 dead letter?")
            await page.get_by_role("button", name="Discard").click()  # the browser asks for the word
            await expect(page.get_by_role("heading", level=1)).to_have_text("Discard 1 dead letter?")
            await page.get_by_label("Type discard to confirm").fill("discard")
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("heading", level=1)).to_have_text("1 discarded.")
        with replicas.server.redis() as admin:
            assert admin.xlen(keys.DEAD) == left


async def test_a_viewer_signs_in_to_act(chromium: Browser, replicas: Replicas) -> None:
    """Without credentials there is a link to sign in and no button; with a foreign Origin nothing is done."""
    (process,) = await replicas(1, {"MESH_CLASS": "A", "PAGE_PASSWORD": "correct horse"})
    add_letters(replicas, 1, "no such warehouse")
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{process.private}/mesh/dead")
        await expect(page.get_by_role("link", name="Sign in")).to_be_visible()
        await expect(page.locator(".acts")).to_have_count(0)
    async with tab(chromium, operator="correct horse") as opened:
        await opened.page.goto(f"{process.private}/mesh/services")
        await opened.page.get_by_role("link", name="Sign in").click()
        await expect(opened.page.locator(".acts").first).to_be_visible()
        assert opened.page.url == f"{process.private}/mesh/services", "back to where the operator was"
        foreign = await opened.page.request.post(
            f"{process.private}/mesh/acts/replay", form={"ids": "1-0"}, headers={"Origin": "https://evil.example"}
        )
        assert foreign.status == 403


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_is_accessible_and_fits(chromium: Browser, replicas: Replicas, scheme: str) -> None:
    """axe finds nothing, nothing scrolls sideways, and strangers' text is shown exactly.

    The views have something of everything: a job, what waits, a dead letter, a paused operation, a request's timeline.
    """
    hostile = '<b>"7"</b><script>alert(7)</script>\\ud800' + "9" * 300
    (process,) = await replicas(1, {"MESH_CLASS": "A", "PAGE_PASSWORD": "correct horse"})
    with replicas.server.redis() as admin:
        admin.xadd(keys.class_requests("D"), {"op": "x", "request": "r", "from": "f", "body": hostile})
        now = int(admin.time()[0]) * 1000
        job = {"size": 900, "created": now, "deadline": now + 600_000, "values": 4, "left": 1, "failures": 0}
        admin.hset(f"shared:values:job:{'j' * 22}", mapping=job)
        admin.zadd("shared:values:jobs:open", {"j" * 22: now + 600_000})
        admin.hset(keys.later("x"), mapping={"op": "x", "to": "A", "try": 1, "error": hostile})
        admin.zadd(keys.LATER, {"x": now + 600_000})
        admin.hset(keys.PAUSED, "x.put", f"{now} ann")
        id = admin.xadd(keys.DEAD, {"reason": hostile, "stream": "s", "deliveries": "3", "body": hostile})
    items = [{"value": 6, "ttl": 60, "cls": "A"}]
    answer = await replicas.client.post(f"{process.public}/values", json=items, headers={"X-Request-Id": "my-post"})
    assert answer.status_code == 200
    questions = f"/mesh/confirm/discard?like={id}", "/mesh/confirm/resume?op=x.put"
    for width in WIDTHS:
        async with tab(chromium, width=width, scheme=scheme, operator="correct horse") as opened:  # type: ignore[arg-type]
            await opened.page.goto(f"{process.private}/mesh/sign-in")
            for view in (*questions, "/mesh/requests?request=my-post", *VIEWS):
                await opened.page.goto(process.private + view)
                if view not in questions:
                    await expect(opened.page.locator("#link-text")).to_have_text("live")
                assert not await opened.scrolls_sideways(), (view, width)
                if width in (360, 1280):
                    assert await opened.violations() == [], (view, width)
            await expect(opened.page.locator("#panel-jobs .item")).to_contain_text("3 of 4 values done")
            await opened.page.goto(f"{process.private}/mesh/dead")
            await expect(opened.page.locator("#groups h2")).to_contain_text(hostile[:150])
            await expect(opened.page.locator("#groups .body")).to_have_text(f"{hostile[:300]}…")
            await opened.page.goto(f"{process.private}/mesh/requests?request=my-post")
            bar = await opened.page.locator(".timeline").bounding_box()
            assert bar is not None and bar["width"] > 200, f"a timeline is seen at {width} pixels"


async def test_the_keyboard_and_no_script_are_enough(chromium: Browser, replicas: Replicas) -> None:
    """Digits open views; without JavaScript every view is readable."""
    (process,) = await replicas(1, {"MESH_CLASS": "A"})
    async with tab(chromium) as opened:
        await opened.page.goto(f"{process.private}/mesh")
        await opened.page.keyboard.press("2")
        await expect(opened.page.get_by_role("heading", level=1)).to_have_text("Nothing waits")
        await opened.page.keyboard.press("3")
        await expect(opened.page.get_by_role("heading", level=1)).to_have_text("Newest answers")
        await opened.page.keyboard.press("/")
        await expect(opened.page.get_by_label("Id, name or X-Request-Id")).to_be_focused()
        await opened.page.keyboard.type("1-0")
        await opened.page.keyboard.press("Enter")
        await expect(opened.page.get_by_role("heading", level=1)).to_have_text("Request 1-0")
        await expect(opened.page.locator("#answer")).to_contain_text("Nothing is known of it")
        await opened.page.keyboard.press("4")
        await expect(opened.page.get_by_role("heading", level=1)).to_have_text("No dead letters")
    async with tab(chromium, javascript=False) as opened:
        for view in VIEWS:
            await opened.page.goto(process.private + view)
            await expect(opened.page.get_by_role("heading", level=1)).not_to_be_empty()
            await expect(opened.page.get_by_text("Served by")).to_be_visible()
