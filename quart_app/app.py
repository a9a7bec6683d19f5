"""Builds the two Quart applications of a replica, one for each port, with the services that the replica runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version as package_version

from quart import Blueprint

from mesh import Operations, SetupError
from mesh.raw import Worker
from quart_app.dashboard import LivePage, landing_routes
from quart_app.http import collisions, health, metrics, openapi
from quart_app.http.application import Application
from quart_app.lifecycle import Services
from quart_app.registry import SERVICES
from quart_app.service import Context, Service

VERSION = package_version("quart-mesh")


@dataclass
class App:
    """One replica's two applications and what they share."""

    context: Context
    services: Services
    public: Application
    private: Application
    #: why clients should send requests to another replica, as far as the process knows: it starts, drains, or has lost
    #: its lease; else "". `why_not_ready` looks at more.
    reason: str = "starting"
    #: those of all services, for the membership
    operations: list[Operations | Worker] = field(default_factory=list)


def create_app(context: Context) -> App:
    """Return the applications of a replica with the services that the settings name.

    Raises SetupError when two routes answer the same request.
    """
    services = [_create_service(name, context) for name in context.settings.service_names]
    request_metrics = metrics.RequestMetrics(context.metrics)

    # The functions below are called only when `app` exists.
    def turns_away() -> bool:
        """Return whether clients should go to another replica: this one starts, drains, or has lost its lease."""
        return bool(app.reason)

    public_app, private_app = (
        Application(name, context.settings, request_metrics, turns_away) for name in ("public", "private")
    )
    app = App(context, Services(services, context.metrics), public_app, private_app)
    for service in services:
        app.operations += service.operations
    public_blueprints = [blueprint for service in services for blueprint in service.public]
    private_blueprints = [blueprint for service in services for blueprint in service.private]

    def reason_not_ready() -> str:
        return why_not_ready(app)

    # Two applications and two documents have these routes, and each of the four gets a blueprint of its own.
    def health_routes() -> Blueprint:
        return health.routes(context, reason_not_ready, app.services.not_ready)

    public_docs = openapi.routes([*public_blueprints, health_routes()], VERSION, private_blueprints)
    private_docs = openapi.routes([health_routes()], VERSION, private_blueprints)
    settings = context.settings
    landing = landing_routes(settings.page_url if settings.page else "") if settings.page_public else ()
    live_routes = LivePage(context, turns_away, services).routes() if settings.page else ()
    _register(app.public, [health_routes(), *public_blueprints, public_docs, *landing])
    _register(app.private, [health_routes(), *private_blueprints, metrics.routes(context), *live_routes, private_docs])
    return app


def why_not_ready(app: App) -> str:
    """Return why no requests should be sent to this replica, or "" when it is ready."""
    if app.reason:
        return app.reason
    mesh = app.context.membership
    if mesh is None or not mesh.trusted:
        return "this replica holds no lease"
    if not mesh.reachable:
        return "Redis cannot be reached"
    return mesh.memory.eviction_reason  # why the server may delete acknowledged data, or ""


def _create_service(name: str, context: Context) -> Service:
    service: Service = import_module(SERVICES[name]).create(context)
    return service


def _register(port_app: Application, blueprints: Sequence[Blueprint]) -> None:
    for blueprint in blueprints:
        port_app.register_blueprint(blueprint)
    port_app.create_route_metrics()
    if collision := collisions.find(port_app):
        raise SetupError(f"two routes of the {port_app.name} port collide: {collision}; change ENDPOINT_PREFIX")
