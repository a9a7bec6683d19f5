"""The landing page, `GET /` of the public port: try the mesh in a browser.

The page posts a number, shows its prime factors and finds numbers by prime, with only the public routes. Visitors who
can reach the live page get a link to it. The page is rendered only twice: once with the link, and once without.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from quart import Blueprint, Response, request

from quart_app.dashboard.assets import CONTENT_SECURITY_POLICY, Assets
from quart_app.dashboard.templating import template_environment
from quart_app.security.secrets import is_loopback


def routes(live_page_url: str) -> Sequence[Blueprint]:
    """Return the routes GET / and the files that the page loads.

    If `live_page_url` is "", no visitor gets a link to the live page.
    """
    assets = Assets()
    template = template_environment(assets).get_template("landing.html")
    page_without_link, page_with_link = (template.render(live=url).encode() for url in ("", live_page_url))
    link_is_local = is_loopback(_host_of(live_page_url))
    blueprint = Blueprint("landing", __name__)

    @blueprint.get("/")
    async def landing() -> Response:
        # A link to a loopback address works only for a visitor on this machine, who uses a loopback address, too.
        can_follow = not link_is_local or is_loopback(_host_of(f"//{request.host}"))
        # "no-cache": the names of its files change with a release, so a browser must ask for the page each time.
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
        return Response(
            page_with_link if can_follow else page_without_link,
            content_type="text/html; charset=utf-8",
            headers=headers,
        )

    return [blueprint, assets.routes()]


def _host_of(url: str) -> str:
    """Return the host that a URL names, or "" if it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
