"""create_app(): names the services and puts the two applications of a replica together, one for each port."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version as package_version

import structlog
from quart import Blueprint, Quart, Response, g, request

from mesh import Worker
from quart_app import documentation, errors, health, metrics
from quart_app.service import Context, Service

log = structlog.get_logger(__name__)

#: The one line of each service; its package is imported only where it runs.
SERVICES = {
    "values": "quart_app.values",
    "addresses": "quart_app.addresses",
    "messages": "quart_app.messages",
    "grades": "quart_app.grades",
    "movements": "quart_app.movements",
}

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
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
    app = App(context, services, Quart("public", static_folder=None), Quart("private", static_folder=None))
    for service in services:
        app.worker.include(service.worker)
    requests = metrics.Requests(context.metrics)
    public = [blueprint for service in services for blueprint in service.public]
    private = [blueprint for service in services for blueprint in service.private]

    def reason() -> str:
        return why_not_ready(app)

    docs = documentation.routes([*public, health.routes(context, reason)], VERSION, private)
    _put_together(app, app.public, [*public, docs], requests, reason)
    _put_together(app, app.private, [*private, metrics.routes(context)], requests, reason)
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


def _put_together(
    app: App, quart: Quart, blueprints: Sequence[Blueprint], requests: metrics.Requests, reason: Callable[[], str]
) -> None:
    settings = app.context.settings
    quart.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    quart.config["BODY_TIMEOUT"] = settings.body_timeout_ms / 1000
    quart.config["RESPONSE_TIMEOUT"] = None
    quart.json.sort_keys = False  # type: ignore[attr-defined]
    errors.install(quart)
    requests.install(quart)
    _follow_requests(app, quart)
    quart.register_blueprint(health.routes(app.context, reason))
    for blueprint in blueprints:
        quart.register_blueprint(blueprint)


def _follow_requests(app: App, quart: Quart) -> None:
    """Request ids in and out, one log line each, and `Connection: close` once the replica is about to leave."""

    @quart.before_request
    async def begin() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @quart.after_request
    async def end(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        if app.reason:
            response.headers["Connection"] = "close"
        say = log.warning if response.status_code >= 500 else log.debug
        route = request.url_rule.rule if request.url_rule is not None else "none"
        say("request", method=request.method, route=route, status=response.status_code)
        return response
