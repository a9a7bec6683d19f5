"""Pages for people: the landing page of the public port, and the live page of the private port."""

from quart_app.dashboard.landing import routes as landing_routes
from quart_app.dashboard.live import LivePage

__all__ = ["LivePage", "landing_routes"]
