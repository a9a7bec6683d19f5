"""create_app(): names the services and puts the two applications of a replica together, one for each port."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version as package_version

from quart import Blueprint, Quart

from mesh import Worker
from quart_app.dashboard import landing_routes
from quart_app.http import health, metrics, openapi
from quart_app.http.application import Application
from quart_app.service import Context, Service

#: The one line of each service; its package is imported only where it runs.
SERVICES = {
    "values": "quart_app.values",
    "addresses": "quart_app.addresses",
    "messages": "quart_app.messages",
    "grades": "quart_app.grades",
    "movements": "quart_app.movements",
}

VERSION = package_version("quart-mesh")


@dataclass
class App:
    """One replica's two applications and what they share."""

    context: Context
    services: list[Service]
    public: Quart
    private: Quart
    #: why requests should go elsewhere; "" when they should not
    reason: str = "starting"
    worker: Worker = field(default_factory=Worker)


def create_app(context: Context) -> App:
    """The applications with the services that the settings name."""
    services = [_service(name, context) for name in context.settings.service_names]
    requests = metrics.Requests(context.metrics)

    def leaving() -> bool:
        return bool(app.reason)

    public_port, private_port = (Application(n, context.settings, requests, leaving) for n in ("public", "private"))
    app = App(context, services, public_port, private_port)
    for service in services:
        app.worker.include(service.worker)
    public = [blueprint for service in services for blueprint in service.public]
    private = [blueprint for service in services for blueprint in service.private]

    def reason() -> str:
        return why_not_ready(app)

    docs = openapi.routes([*public, health.routes(context, reason)], VERSION, private)
    pages = landing_routes() if context.settings.page_public else ()
    _register(app.public, [health.routes(context, reason), *public, docs, *pages])
    _register(app.private, [health.routes(context, reason), *private, metrics.routes(context)])
    return app


def why_not_ready(app: App) -> str:
    """Why this replica should get no requests, or ""."""
    if app.reason:
        return app.reason
    replica = app.context.replica
    if replica is None or not replica.trusted:
        return "this replica holds no lease"
    if not replica.reachable:
        return "Redis cannot be reached"
    return ""


def _service(name: str, context: Context) -> Service:
    service: Service = import_module(SERVICES[name]).create(context)
    return service


def _register(quart: Quart, blueprints: Sequence[Blueprint]) -> None:
    for blueprint in blueprints:
        quart.register_blueprint(blueprint)
