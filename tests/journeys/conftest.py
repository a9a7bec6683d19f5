"""Fixtures of the journeys.

chromium     a browser for one test; `async with tab(chromium)` opens a page
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from tests.support.browser import browser


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """One browser for a test."""
    async with browser() as started:
        yield started
