"""The address service: stateless, everything it knows is in Redis, so any replica answers."""

from __future__ import annotations

from quart_app.addresses.routes import AddressRoutes
from quart_app.addresses.settings import AddressSettings
from quart_app.service import Context, Service


def create(context: Context) -> Service:
    """The service, its settings taken from the environment."""
    return Service("addresses", public=[AddressRoutes(context, AddressSettings()).blueprint])
