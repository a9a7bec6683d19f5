"""The landing page, `GET /` of the public port: try the mesh in a browser.

The page posts a number, shows its prime factors and finds numbers by prime, with the public routes alone. Visitors who
can reach the live page get a link to it. The page is rendered only twice: once with the link, and once without.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from quart import Blueprint, Response, request

from quart_app.dashboard.assets import POLICY, Assets
from quart_app.dashboard.templating import environment
from quart_app.security.secrets import is_loopback


def routes(live: str) -> Sequence[Blueprint]:
    """Return the routes GET / and the files that the page loads.

    `live` is the address of the live page; "": no visitor gets a link.
    """
    assets = Assets()
    template = environment(assets).get_template("landing.html")
    page, page_with_link = (template.render(live=address).encode() for address in ("", live))
    live_is_local = is_loopback(_host_of(live))
    blueprint = Blueprint("landing", __name__)

    @blueprint.get("/")
    async def landing() -> Response:
        # A visitor who uses a loopback address is on this machine, where a link to a loopback address works.
        can_follow = not live_is_local or is_loopback(_host_of(f"//{request.host}"))
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(
            page_with_link if can_follow else page, content_type="text/html; charset=utf-8", headers=headers
        )

    return [blueprint, assets.routes()]


def _host_of(address: str) -> str:
    """Return the host that an address names, or "" if it names none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
