"""A real browser for tests of pages: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Nothing but the pages under test may be asked for over the network.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: Rules of WCAG 2.2 up to level AA, and the best practices of axe-core.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Debian's package chromium"
)


@dataclass
class Tab:
    """One page of the browser, and whatever it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        """Keep what the console reports as a warning or an error; violations of the page's CSP are among them."""
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.text} ({message.location})")

    async def scrolls_sideways(self) -> bool:
        """Whether the page is wider than its window."""
        wider: bool = await self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        return wider

    async def violations(self) -> list[dict[str, Any]]:
        """What axe finds on the page as it is now."""
        found = await Axe().run(self.page, options={"runOnly": {"type": "tag", "values": RULES}})
        return [
            {"rule": each["id"], "help": each["help"], "nodes": [node["html"] for node in each["nodes"]]}
            for each in found.response["violations"]
        ]


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Start Chromium without a window; it ends with the block."""
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield started
        finally:
            await started.close()


@contextlib.asynccontextmanager
async def tab(
    started: Browser,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    javascript: bool = True,
    operator: str = "",
) -> AsyncIterator[Tab]:
    """Open a page of this width and colour scheme. Fails at the end if its console had complaints.

    `operator` is the password that the browser gives when the live page asks for one, at /mesh/sign-in.
    """
    context = await started.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=javascript,
        http_credentials={"username": "operator", "password": operator} if operator else None,
    )  # fmt: skip
    context.set_default_timeout(15_000)
    opened = Tab(await context.new_page())
    opened.page.on("console", opened.hear)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    try:
        yield opened
    finally:
        await context.close()
    assert not opened.complaints, opened.complaints
