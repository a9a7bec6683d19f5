"""The live page in a real browser while replicas die, Redis stops, and many look at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from mesh import keys
from quart_app.local.caddy import Site, balancer, find_caddy
from quart_app.local.ports import free_ports
from quart_app.local.processes import Supervisor
from tests.support.browser import needs_chromium, tab
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

pytestmark = [needs_chromium, pytest.mark.slow]

CLASS_A = {"MESH_CLASS": "A"}
ITEMS = [{"value": 6, "ttl": 60, "cls": "A"}]


@contextlib.asynccontextmanager
async def for_operators(processes: list[Process]) -> AsyncIterator[str]:
    """The operators' address of Caddy, in front of these replicas."""
    public, private = free_ports(2)

    def addresses(kind: str) -> list[str]:
        return [getattr(process, kind).removeprefix("http://") for process in processes]

    sites = Site(public, addresses("public")), Site(private, addresses("private"))
    async with balancer(Supervisor(print), *sites), httpx.AsyncClient() as client:
        address = f"http://127.0.0.1:{private}"

        async def is_there() -> bool:
            return (await client.get(f"{address}/health")).status_code == 200

        await eventually(is_there, 15)
        yield address


@pytest.mark.skipif(find_caddy() is None, reason="no Caddy here")
async def test_the_page_goes_on_over_another_replica(chromium: Browser, replicas: Replicas) -> None:
    """SIGKILL of the one that serves it: live again within ten seconds, and nothing that was typed is lost."""
    processes = await replicas(2, CLASS_A)
    async with for_operators(processes) as address, tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{address}/mesh/requests?op=values")
        await expect(page.locator("#link-text")).to_have_text("live")
        await page.get_by_label("Id, name or X-Request-Id").fill("half a name")
        serving = await page.locator("footer code").first.inner_text()
        pid = next(member.pid for member in await replicas.roster() if member.replica == serving)
        (gone,) = (process for process in processes if process.pid == pid)
        (left,) = (process for process in processes if process is not gone)
        gone.kill()
        await asyncio.sleep(1)
        await replicas.client.post(f"{left.public}/values", json=ITEMS, headers={"X-Request-Id": "after"})
        await expect(page.locator("#newest tbody")).to_contain_text("values.put", timeout=10_000)
        await expect(page.locator("#link-text")).to_have_text("live", timeout=10_000)
        assert await page.get_by_label("Id, name or X-Request-Id").input_value() == "half a name"
        opened.complaints.clear()  # the browser notes the lost connection


async def test_a_replica_that_leaves_in_order_is_no_fault(chromium: Browser, replicas: Replicas) -> None:
    """SIGTERM: a line says that it left, and none that something is wrong."""
    one, two = await replicas(2, CLASS_A)
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{one.private}/mesh")
        await expect(page.locator(".place.ready")).to_have_count(2)
        two.send(signal.SIGTERM)
        await expect(page.locator(".notes")).to_contain_text("has left in order", timeout=10_000)
        assert await page.locator(".notes .bad").count() == 0
        assert await two.ended(20) == 0


async def test_a_class_without_a_replica_is_said(chromium: Browser, replicas: Replicas) -> None:
    """The column of the class stays, and the headline is "Something is wrong."."""
    one = (await replicas(1, CLASS_A))[0]
    last = (await replicas(1, {"MESH_CLASS": "B"}))[0]
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{one.private}/mesh")
        await expect(page.locator("#class-B")).to_contain_text("1 ready")
        last.kill()
        await expect(page.locator("#note-class-B")).to_contain_text("has no ready replica", timeout=10_000)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Something is wrong.")
        await expect(page.locator("#class-B")).to_contain_text("0 ready")


async def test_while_redis_is_stopped_the_figures_stay(chromium: Browser, replicas: Replicas) -> None:
    """The page says for how long there was no news, and goes on by itself afterwards."""
    (process,) = await replicas(1, CLASS_A)
    await replicas.client.post(f"{process.public}/values", json=ITEMS)
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{process.private}/mesh")
        await expect(page.locator(".books dd").first).to_have_text("1")
        assert replicas.server.process is not None
        replicas.server.process.send_signal(signal.SIGSTOP)
        try:
            await expect(page.locator("#link-text")).to_contain_text("no news for", timeout=10_000)
            await expect(page.locator(".books dd").first).to_have_text("1")
        finally:
            replicas.server.process.send_signal(signal.SIGCONT)
        await expect(page.locator("#link-text")).to_have_text("live", timeout=20_000)
        await replicas.ready(process)
        await replicas.client.post(f"{process.public}/values", json=ITEMS)
        await expect(page.locator(".books dd").first).to_have_text("2", timeout=10_000)
        opened.complaints.clear()


async def test_twenty_viewers_cost_one_reader_and_a_hidden_tab_none(chromium: Browser, replicas: Replicas) -> None:
    """Redis hears one look a second, and none when nobody looks."""
    (process,) = await replicas(1, CLASS_A)

    def looks() -> int:
        with replicas.server.redis() as admin:
            return int(admin.info("commandstats").get("cmdstat_xinfo|stream", {}).get("calls", 0)) // 20

    async def in_seconds(seconds: int) -> int:
        before = looks()
        await asyncio.sleep(seconds)
        return looks() - before

    async def watch() -> None:
        async with httpx.AsyncClient(timeout=None) as client:
            async with client.stream("GET", f"{process.private}/mesh/events/overview") as answer:
                async for _ in answer.aiter_lines():
                    pass

    async with tab(chromium) as opened:
        await opened.page.goto(f"{process.private}/mesh")
        await expect(opened.page.locator("#link-text")).to_have_text("live")
        viewers = [asyncio.create_task(watch()) for _ in range(19)]
        await asyncio.sleep(1)
        assert 1 <= await in_seconds(4) <= 6, "20 viewers, about one look a second"
        for viewer in viewers:
            viewer.cancel()
        await asyncio.wait(viewers)
        await _show(opened.page, hidden=True)
        await asyncio.sleep(2)
        assert await in_seconds(3) == 0, "the connection of the hidden page is closed"
        await _show(opened.page, hidden=False)
        await expect(opened.page.locator("#link-text")).to_have_text("live")
        await asyncio.sleep(1)
        assert await in_seconds(3) >= 1


async def _show(page: Page, *, hidden: bool) -> None:
    """Tell the page that it is hidden or visible, as the browser does when its tab is."""
    await page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


@pytest.mark.timeout(180)
async def test_the_keyboard_is_enough_to_act(chromium: Browser, replicas: Replicas) -> None:
    """The skip link, a view, an act; the focus stays through 20 changes of the page, and returns from the question."""
    (process,) = await replicas(1, {**CLASS_A, "PAGE_PASSWORD": "correct horse"})
    letter = {"kind": "event", "stream": "events:x", "id": "1-0", "reason": "no such warehouse", "deliveries": "3"}
    with replicas.server.redis() as admin:
        admin.xadd(keys.DEAD, {**letter, "body": json.dumps({"product": 0})})
        async with tab(chromium, operator="correct horse") as opened:
            page = opened.page
            await page.goto(f"{process.private}/mesh/sign-in")
            await page.keyboard.press("1")
            await expect(page.locator("#books")).to_be_visible()
            await page.keyboard.press("Tab")
            await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.locator("#main")).to_be_focused()
            await page.keyboard.press("4")
            await expect(page.get_by_role("heading", level=1)).to_have_text("1 dead letter")
            chosen = page.locator("#groups [aria-label^=Discard]").first
            oldest = await chosen.get_attribute("aria-label")
            await _tab_to(page, str(oldest))
            for number in range(20):
                admin.xadd(keys.DEAD, {**letter, "reason": f"another {number}", "body": "{}"})
                await asyncio.sleep(1)
            await expect(page.get_by_role("heading", level=1)).to_have_text("21 dead letters", timeout=10_000)
            assert await _focused(page) == oldest
            for way_back in ("Escape", "Enter"):
                await page.keyboard.press("Enter")
                await expect(page.get_by_role("heading", level=1)).to_have_text("Discard 1 dead letter?")
                await page.wait_for_load_state("load")  # its script has begun
                if way_back == "Enter":
                    await page.get_by_role("link", name="Keep everything as it is").focus()
                await page.keyboard.press(way_back)
                await expect(page.get_by_role("heading", level=1)).to_have_text("21 dead letters")
                await page.wait_for_load_state("load")
                assert await _focused(page) == oldest
            assert admin.xlen(keys.DEAD) == 21


async def _focused(page: Page) -> str | None:
    found: str | None = await page.evaluate("document.activeElement.getAttribute('aria-label')")
    return found


async def _tab_to(page: Page, label: str) -> None:
    for _ in range(60):
        if await _focused(page) == label:
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"{label} cannot be reached with the keyboard")


async def test_nothing_moves_for_who_wants_no_motion(chromium: Browser, replicas: Replicas) -> None:
    """The page obeys the setting prefers-reduced-motion of the browser."""
    (process,) = await replicas(1, CLASS_A)
    async with tab(chromium) as opened:
        await opened.page.emulate_media(reduced_motion="reduce")
        for view in ("/mesh", "/mesh/streams", "/mesh/dead"):
            await opened.page.goto(process.private + view)
            await expect(opened.page.locator("#link-text")).to_have_text("live")
            assert await opened.page.evaluate("document.getAnimations().length") == 0
