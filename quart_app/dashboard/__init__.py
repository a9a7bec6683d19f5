"""Pages for people: the landing page of the public port."""

from quart_app.dashboard.landing import routes as landing_routes

__all__ = ["landing_routes"]
