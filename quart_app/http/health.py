"""The routes that say whether this process lives, and whether it may be sent requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from quart import Blueprint, Response, jsonify
from quart_schema import tag

from quart_app.http.problems import Problem
from quart_app.service import Context

log = structlog.get_logger(__name__)

#: Seconds between two looks at the reason. A state that lasts for less time may never be logged; a shorter interval
#: costs more looks.
CHECK_INTERVAL_S = 0.5
#: Seconds between two log lines while the reason stays the same. A shorter interval makes the log longer; with a longer
#: one, the last lines of the log may not have the reason.
REPEAT_INTERVAL_S = 60.0


async def report(find_reason: Callable[[], str]) -> None:
    """Log why this replica is not ready: when the reason changes, and once a minute while it stays. Never return.

    `find_reason` returns why the replica is not ready, or "" when it is ready.
    """
    logged_reason, logged_at_s = "", 0.0
    while True:
        current_reason, now_s = find_reason(), time.monotonic()
        if current_reason and (current_reason != logged_reason or now_s - logged_at_s >= REPEAT_INTERVAL_S):
            log.warning("not ready", reason=current_reason)
            logged_at_s = now_s
        elif logged_reason and not current_reason:
            log.info("ready again", was=logged_reason)
        logged_reason = current_reason
        await asyncio.sleep(CHECK_INTERVAL_S)


def routes(
    context: Context, find_reason: Callable[[], str], find_unready_services: Callable[[], Mapping[str, str]]
) -> Blueprint:
    """Return the routes GET /health and GET /readyz.

    `find_reason` returns why the replica is not ready, or "" when it is ready. `find_unready_services` returns the
    services that are not ready, each with the reason.
    """
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/health")
    @tag(["health"])
    async def health() -> Response:
        """Answer 200 while this process lives."""
        return jsonify({"status": "alive"})

    @blueprint.get("/readyz")
    @tag(["health"])
    async def readyz() -> Response:
        """Answer 200 while this replica may be sent requests, or else 503 with the reason.

        `not_ready` names the services that answer 503 while the replica serves the others, each with the reason. `full`
        is true while Redis has no room: nothing new is stored then, and reads go on.
        """
        current_reason = find_reason()
        if current_reason:
            # Balancers ask all the time; `report` logs the reason.
            raise Problem(
                503, current_reason, retry_after=1, is_logged_elsewhere=True, not_ready=dict(find_unready_services())
            )
        replica = context.mesh
        return jsonify(
            {
                "status": "ready",
                "replica": replica.id,
                "database": replica.database,
                "class": replica.cls,
                "not_ready": dict(find_unready_services()),
                "full": replica.memory.is_full,
            }
        )

    return blueprint
