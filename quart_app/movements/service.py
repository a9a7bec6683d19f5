"""Builds the movements service: it stores the events of a stream in two tables, and answers two routes."""

from __future__ import annotations

from quart_app.movements import panel
from quart_app.movements.ledger import GROUP, Ledger
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.routes import MovementRoutes
from quart_app.movements.settings import MovementSettings
from quart_app.service import Context, Service


def create(context: Context) -> Service:
    """Return the service, with its settings from the environment."""
    settings = MovementSettings()
    ledger = Ledger(settings, MovementMetrics(context.metrics))
    return Service(
        "movements",
        public=[MovementRoutes(ledger).blueprint],
        lifespan=ledger.running,
        trouble=ledger.trouble,
        panel=lambda replica: panel.read(replica, settings.movements_stream, GROUP),
    )
