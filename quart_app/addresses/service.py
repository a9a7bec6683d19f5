"""Builds the address service. All of its state is in Redis, so any replica answers any request."""

from __future__ import annotations

from quart_app.addresses.routes import AddressRoutes
from quart_app.addresses.settings import AddressSettings
from quart_app.service import Context, Service


def create(context: Context) -> Service:
    """Return the service, with its settings from the environment."""
    return Service("addresses", public=[AddressRoutes(context, AddressSettings()).blueprint])
