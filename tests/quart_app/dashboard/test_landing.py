"""The landing page as bytes: where it is served, and what its headers forbid."""

from __future__ import annotations

import re

import pytest

from quart_app.dashboard.assets import Assets
from tests.support.nodes import applications


async def test_the_public_port_serves_the_page() -> None:
    """The policy of the page allows our own files and nothing inline; the private port has no such page."""
    app = applications()
    response = await app.public.test_client().get("/")
    page = (await response.get_data()).decode()
    assert (response.status_code, response.content_type) == (200, "text/html; charset=utf-8")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|\son\w+=", page)
    assert (await app.private.test_client().get("/")).status_code == 404


async def test_every_file_that_the_page_names_is_served_for_ever() -> None:
    """The name of a file has a hash of its content, so a cached copy is never an old one."""
    client = applications().public.test_client()
    page = (await (await client.get("/")).get_data()).decode()
    named = re.findall(r'"(/assets/[^"]+)"', page)
    assert {name.split(".")[0] for name in named} == {"/assets/icon", "/assets/landing"}
    for address in named:
        response = await client.get(address)
        assert response.status_code == 200
        assert "immutable" in response.headers["Cache-Control"]
    assert (await client.get("/assets/landing.js")).status_code == 404


@pytest.mark.parametrize(
    ("live", "host", "is_shown"),
    [
        ("http://127.0.0.1:8001/mesh", "localhost:8000", True),
        ("http://127.0.0.1:8001/mesh", "[::1]:8000", True),
        ("http://127.0.0.1:8001/mesh", "192.0.2.1", False),
        ("https://ops.example/mesh", "192.0.2.1", True),
        ("", "localhost", False),
    ],
)
async def test_it_leads_to_the_live_page_where_that_can_be_reached(live: str, host: str, is_shown: bool) -> None:
    """A loopback address is of use on the same machine only."""
    response = await applications(page_url=live).public.test_client().get("/", headers={"Host": host})
    assert response.status_code == 200
    page = (await response.get_data()).decode()
    assert (f'<a href="{live}">Live page</a>' in page, "Live page" in page) == (is_shown, is_shown)


async def test_without_a_live_page_there_is_no_link() -> None:
    """With PAGE=0 the landing page has no link."""
    app = applications(page=False, page_url="https://ops.example/mesh")
    page = await (await app.public.test_client().get("/")).get_data()
    assert b"Live page" not in page


async def test_it_can_be_turned_off() -> None:
    """With PAGE_PUBLIC=0 there is no landing page."""
    client = applications(page_public=False).public.test_client()
    assert (await client.get("/")).status_code == 404
    assert (await client.get(Assets().url("landing.js"))).status_code == 404
