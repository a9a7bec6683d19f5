"""The landing page in a real browser, over real replicas."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.browser import needs_chromium, tab
from tests.support.replicas import Process, Replicas

pytestmark = [needs_chromium, pytest.mark.slow]

#: Two primes of 32 digits: minutes of work for one process.
HARD = 10000000000000000000000000000033 * 10000000000000000000000000000049


@pytest.fixture
async def replica(replicas: Replicas) -> Process:
    """One replica of class A, whose landing page links to a live page."""
    (process,) = await replicas(1, {"MESH_CLASS": "A", "PAGE_URL": "http://127.0.0.1:8001/mesh"})
    return process


async def factorise(page: Page, number: str) -> None:
    await page.get_by_label("A whole number").fill(number)
    await page.get_by_role("button", name="Factorise").click()


async def test_numbers_are_split_and_shown_exactly(chromium: Browser, replica: Process) -> None:
    """1, a prime, a power, and a number that floating point would round: each has its own words."""
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(replica.public)
        long = "3 to the power 3 · 7 · 11 · 13 · 31 · 37 · 41 · 211 · 241 · 271 · 2 161 · 9 091 · 2 906 161"
        for number, power, facts in [
            ("720720", "720 720 = 2 to the power 4 · 3 to the power 2 · 5 · 7 · 11 · 13", "10 prime factors"),
            ("1", "1 = 1", "1 has no prime factors."),
            ("1000000007", "1 000 000 007 = 1 000 000 007", "It is a prime number."),
            (str(2**100), f"{2**100:_} = 2 to the power 100".replace("_", " "), "100 prime factors, 1 of them"),
            (
                str(10**30 - 1),
                f"{10**30 - 1:_} = {long}".replace("_", " "),
                "15 prime factors, 13 of them",
            ),
        ]:  # fmt: skip
            await factorise(page, number)
            await expect(page.locator("#facts")).to_contain_text(facts)
            shown = await page.locator("#power").inner_text()
            assert re.sub(r"\s+", " ", shown.replace("\u202f", " ")).strip() == power
        await expect(page.get_by_role("img", name="Factor tree: 3 times 3 times 3 times 7")).to_be_visible()


async def test_each_mistake_has_its_own_sentence(chromium: Browser, replica: Process) -> None:
    """What is not a whole number never leaves the page; what the server refuses is shown in the server's words."""
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(replica.public)
        for number in ("0", "", "-7", "1.5", "abc"):
            await factorise(page, number)
            await expect(page.get_by_role("alert")).to_have_text("Enter a whole number from 1 up.")
        await page.get_by_label("A prime number").fill("4")
        await page.get_by_role("button", name="Find").click()
        await expect(page.locator("#asked")).to_contain_text("not a prime")
        # The browser itself notes the 422 in its console; the page says no more than that.
        assert all("422" in complaint for complaint in opened.complaints)
        opened.complaints.clear()


async def test_what_the_mesh_cannot_do_is_said(chromium: Browser, replica: Process, replicas: Replicas) -> None:
    """A class whose replica is gone, a job without time, and a server that is gone have a sentence each."""
    (other,) = await replicas(1, {"MESH_CLASS": "B"})
    async with tab(chromium) as opened:
        page, problem = opened.page, opened.page.get_by_role("alert")
        await page.goto(replica.public)
        await page.get_by_text("B", exact=True).click()
        other.kill()
        await factorise(page, "91")
        await expect(problem).to_contain_text("Class B has no replica", timeout=20_000)
        await page.get_by_text("A", exact=True).click()
        failed = {"state": "failed", "errors": [{"detail": "no factor was found in time"}]}
        await page.route("**/jobs/*", lambda route: route.fulfill(json=failed))
        await factorise(page, str(HARD))
        await expect(problem).to_have_text("No factor was found in time.", timeout=20_000)
        replica.kill()
        await factorise(page, "91")
        await expect(problem).to_have_text("The server cannot be reached; try again in a moment.")
        opened.complaints.clear()  # the browser notes each answer that is no success


async def test_a_stored_number_is_found_by_each_of_its_primes(chromium: Browser, replica: Process) -> None:
    """A prime in the answer is a link that asks for it."""
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(replica.public)
        await factorise(page, "91")
        await page.locator("#power").get_by_text("13", exact=True).click()
        await expect(page.locator("#asked")).to_contain_text("One number")
        await expect(page.locator("#found tbody tr")).to_contain_text(["91"])
        await expect(page.locator("#curl")).to_contain_text(f"{replica.public}/values/13")


async def test_a_hard_number_shows_its_progress_and_can_be_cancelled(
    chromium: Browser, replica: Process, replicas: Replicas
) -> None:
    """Cancelling ends the job on the server, too."""
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(replica.public)
        async with page.expect_response(lambda response: response.status == 202) as begun:
            await factorise(page, str(HARD))
        job = replica.public + (await begun.value).headers["location"]
        await expect(page.locator("#stage")).to_contain_text(re.compile(r"replica-\w+: (division|curves|sieve), \d+ s"))
        assert (await replicas.client.get(job)).json()["state"] == "running"
        async with page.expect_response(lambda response: response.request.method == "DELETE"):
            await page.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_role("alert")).to_have_text("Cancelled.")
        await expect(page.locator("#working")).to_be_hidden()
        assert (await replicas.client.get(job)).status_code == 404


@pytest.mark.parametrize(("scheme", "widths"), [("light", (360, 390, 768, 1280, 1600)), ("dark", (360, 1280))])
async def test_it_is_accessible_and_fits_every_width(
    chromium: Browser, replica: Process, scheme: str, widths: tuple[int, ...]
) -> None:
    """axe finds nothing, and nothing scrolls sideways, before and after an answer."""
    for width in widths:
        async with tab(chromium, width=width, scheme=scheme) as opened:  # type: ignore[arg-type]
            page = opened.page
            await page.goto(replica.public)
            await expect(page.get_by_role("link", name="Live page")).to_be_visible()
            assert not await opened.scrolls_sideways()
            await factorise(page, "9" * 60)
            await expect(page.locator("#answer")).to_be_visible()
            await page.get_by_role("button", name="Find").click()
            await expect(page.locator("#asked")).to_contain_text("answered in")
            assert not await opened.scrolls_sideways()
            if width in (360, 1280):
                assert await opened.violations() == []


async def test_it_works_with_the_keyboard_alone(chromium: Browser, replica: Process) -> None:
    """Enter in a field sends its form; Tab reaches the skip link first."""
    async with tab(chromium) as opened:
        page = opened.page
        await page.goto(replica.public)
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await page.get_by_label("A whole number").focus()
        await page.keyboard.press("Control+A")
        await page.keyboard.type("15")
        await page.keyboard.press("Enter")
        await expect(page.locator("#power")).to_contain_text("3 · 5")


async def test_without_javascript_it_says_how_to_go_on(chromium: Browser, replica: Process) -> None:
    """The commands are in the page itself."""
    async with tab(chromium, javascript=False) as opened:
        await opened.page.goto(replica.public)
        await expect(opened.page.get_by_text("This form needs JavaScript")).to_be_visible()
        await expect(opened.page.locator("#curl")).to_contain_text("curl")
