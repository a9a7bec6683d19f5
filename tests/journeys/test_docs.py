"""The page of the OpenAPI document in a real browser."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.support.browser import browser, needs_chromium, tab
from tests.support.replicas import Replicas

pytestmark = [needs_chromium, pytest.mark.slow]


async def test_the_page_obeys_its_policy_and_can_try_an_operation(replicas: Replicas) -> None:
    """The console has no complaint, and the answer of the operation is shown."""
    (replica,) = await replicas(1)
    async with browser() as chromium, tab(chromium) as opened:
        await opened.page.goto(f"{replica.public}/docs")
        operation = opened.page.locator("#operations-values-get_classes")
        await operation.click()
        await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_role("button", name="Execute").click()
        await expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("200")


async def test_no_page_is_shown_in_a_frame_of_another(replicas: Replicas) -> None:
    """A click on a page that shows ours in a frame could be meant for something else."""
    (replica,) = await replicas(1)
    async with browser() as chromium, tab(chromium) as opened:
        await opened.page.set_content(f'<iframe src="{replica.public}/docs"></iframe>')
        await opened.page.wait_for_timeout(1000)
        framed = opened.page.frames[1]
        assert await framed.locator("#swagger-ui").count() == 0
        assert any("frame-ancestors" in complaint for complaint in opened.complaints)
        opened.complaints.clear()
