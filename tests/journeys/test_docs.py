"""The page of the OpenAPI document in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from quart_app.movements.producer import sample
from quart_app.registry import SERVICES
from tests.support.browser import needs_chromium, tab
from tests.support.providers import providers
from tests.support.replicas import Replicas

pytestmark = [needs_chromium, pytest.mark.slow]


async def tries(page: Page, service: str, operation: str, parameters: Mapping[str, str] | None = None) -> None:
    """Try an operation with what the page offers to send, and expect a success."""
    block = page.locator(f"#operations-{service}-{operation}")
    await block.locator(".opblock-summary-control").click()
    await block.get_by_role("button", name="Try it out").click()
    for name, value in (parameters or {}).items():
        await block.get_by_placeholder(name, exact=True).fill(value)
    await block.get_by_role("button", name="Execute").click()
    await expect(block.locator(".live-responses-table .response-col_status").last).to_have_text(
        re.compile("^2[0-9][0-9]")
    )


async def test_the_page_tries_every_service_with_what_it_offers(
    chromium: Browser, replicas: Replicas, tmp_path: Path
) -> None:
    """The page obeys its policy, and its examples succeed; after a login the browser sends the session by itself."""
    async with providers(limit=1000, block_s=1, latency_ms=0) as both:
        files = {"MOVEMENTS_DB_PATH": str(tmp_path / "movements.db"), "GRADES_SNAPSHOT_DIR": str(tmp_path / "grades")}
        (replica,) = await replicas(1, {**both.env, **files, "SERVICES": ",".join(SERVICES)})
        with replicas.server.redis() as redis:
            for message in sample():
                redis.xadd("events:movements", {"body": json.dumps(message)})
        async with tab(chromium) as opened:
            await opened.page.goto(f"{replica.public}/docs")
            await tries(opened.page, "values", "get_classes")
            await tries(opened.page, "values", "post_create_values")
            await tries(opened.page, "values", "get_find", {"prime": "3"})
            await tries(opened.page, "addresses", "post_create")
            await tries(opened.page, "addresses", "get_read", {"phone": "+7 911 123-45-67"})
            await tries(opened.page, "messages", "post_register")
            await tries(opened.page, "messages", "post_login")
            await tries(opened.page, "messages", "post_send")
            await tries(opened.page, "messages", "get_quota")
            movement = {"movement_id": sample()[0]["data"]["movement_id"]}
            await tries(opened.page, "movements", "get_movement", movement)
            await opened.page.goto(f"{replica.private}/docs")
            await opened.page.get_by_role("button", name="Authorize", exact=True).click()
            dialog = opened.page.locator(".modal-ux")
            await dialog.get_by_label("auth-basic-username").fill("grades")
            await dialog.get_by_label("auth-basic-password").fill("grades")
            await dialog.get_by_role("button", name="Apply credentials").first.click()
            await dialog.get_by_role("button", name="Close").first.click()
            await tries(opened.page, "private", "post_set")


async def test_no_page_is_shown_in_a_frame_of_another(chromium: Browser, replicas: Replicas) -> None:
    """Another site cannot lay our page, invisible, over its own buttons and have visitors click on ours."""
    (replica,) = await replicas(1)
    async with tab(chromium) as opened:
        await opened.page.set_content(f'<iframe src="{replica.public}/docs"></iframe>')
        await opened.page.wait_for_timeout(1000)
        framed = opened.page.frames[1]
        assert await framed.locator("#swagger-ui").count() == 0
        assert any("frame-ancestors" in complaint for complaint in opened.complaints)
        opened.complaints.clear()
