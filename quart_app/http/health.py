"""Whether this process lives, and whether it may be sent requests."""

from __future__ import annotations

from collections.abc import Callable

from quart import Blueprint, Response, jsonify
from quart_schema import tag

from quart_app.http.problems import Problem
from quart_app.service import Context


def routes(context: Context, reason: Callable[[], str]) -> Blueprint:
    """GET /health and /readyz. `reason` says why the replica is not ready, or "" when it is."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/health")
    @tag(["health"])
    async def health() -> Response:
        """Whether this process lives."""
        return jsonify({"status": "alive"})

    @blueprint.get("/readyz")
    @tag(["health"])
    async def readyz() -> Response:
        """Whether this replica may be sent requests; if not, 503 says why."""
        why = reason()
        if why:
            raise Problem(503, why, retry_after=1)
        replica = context.mesh
        return jsonify({"status": "ready", "replica": replica.id, "database": replica.database, "class": replica.cls})

    return blueprint
