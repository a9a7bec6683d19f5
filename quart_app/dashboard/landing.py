"""The landing page, `GET /` of the public port: try the mesh in a browser.

The page posts a number, shows its prime factors and finds numbers by prime, with the public routes alone. It is
rendered once; every visitor gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from quart import Blueprint, Response

from quart_app.dashboard.assets import POLICY, Assets
from quart_app.dashboard.templating import environment


def routes() -> Sequence[Blueprint]:
    """GET / and the files that the page loads."""
    assets = Assets()
    page = environment(assets).get_template("landing.html").render().encode()
    blueprint = Blueprint("landing", __name__)

    @blueprint.get("/")
    async def landing() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(page, content_type="text/html; charset=utf-8", headers=headers)

    return [blueprint, assets.routes()]
