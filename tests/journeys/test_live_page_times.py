"""How soon the live page shows what has happened. These tests measure time, so none runs beside them."""

from __future__ import annotations

import asyncio
import re
import signal

import pytest
from playwright.async_api import Browser, expect

from tests.support.browser import needs_chromium, tab
from tests.support.replicas import PROFILE, Replicas

pytestmark = [needs_chromium, pytest.mark.slow]


async def test_the_books_follow_the_load_and_always_balance(chromium: Browser, replicas: Replicas) -> None:
    """A POST shows within two seconds; at each of many moments the page's own figures add up."""
    (process,) = await replicas(1, {"MESH_CLASS": "A"})
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{process.private}/mesh")
        await expect(page.get_by_role("heading", level=1)).to_have_text("All is well.")
        for number in range(10):
            await asyncio.sleep(0.2)
            posted = await replicas.client.post(
                f"{process.public}/values", json=[{"value": 10**6 + number, "ttl": 60, "cls": "A"}]
            )
            assert posted.status_code == 200
            terms = [
                int(text.replace(",", "")) for text in await page.locator(".books dd:not(.rate)").all_inner_texts()
            ]
            assert terms[0] == sum(terms[1:])
        await expect(page.locator(".books dd").first).to_have_text("10", timeout=2000)
        await expect(page.locator("#link-text")).to_have_text("live")
        await expect(page.locator("#books figcaption").first).to_contain_text(
            re.compile(r"median [0-9,]+ ms, 99 of 100 within [0-9,]+ ms"), timeout=15_000
        )


async def test_faults_are_said_and_go_away(chromium: Browser, replicas: Replicas) -> None:
    """A stopped replica loses its lease: the page says so two seconds later at most, and no longer after the takeover.

    The roster row of a lost lease soon ends, too; the page then says in other words that the lease has ended.
    """
    one, two = await replicas(2, {"MESH_CLASS": "A"})
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{one.private}/mesh")
        await expect(page.locator(".place.ready")).to_have_count(2)
        two.send(signal.SIGSTOP)
        try:
            ended = page.locator("[id^=note-place-]").filter(has_text=re.compile("lease.* ended"))
            await expect(ended).to_have_count(1, timeout=int(PROFILE["MESH_LEASE_TTL_MS"]) + 2000)
            await expect(page.get_by_role("heading", level=1)).to_have_text("Something is wrong.")
        finally:
            two.send(signal.SIGCONT)
        await expect(page.locator(".place.ready")).to_have_count(2, timeout=15_000)
        await expect(ended).to_have_count(0)


async def test_a_killed_replica_shows_as_no_news(chromium: Browser, replicas: Replicas) -> None:
    """The figures stay, and within four seconds the page says for how long there was no news."""
    (process,) = await replicas(1, {"MESH_CLASS": "A"})
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(f"{process.private}/mesh")
        await expect(page.locator("#link-text")).to_have_text("live")
        process.kill()
        await expect(page.locator("#link-text")).to_contain_text("no news for", timeout=4000)
        await expect(page.get_by_role("heading", level=1)).to_have_text("All is well.")
        opened.complaints.clear()  # the browser notes each refused connection
