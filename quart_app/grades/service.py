"""Builds the grades service: every replica holds all grades in memory and follows one log."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import structlog

from mesh import Mesh
from mesh.journal import Log
from quart_app.grades import panel
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.replication import Replication
from quart_app.grades.routes import GradesRoutes
from quart_app.grades.settings import TRIAL_PASSWORD, GradesSettings
from quart_app.grades.sources import Source, peer_sources
from quart_app.panels import Panel
from quart_app.security.audit import Audit
from quart_app.security.credentials import CredentialLimiter, Limits
from quart_app.security.secrets import refuse_known
from quart_app.service import Context, Service

log = structlog.get_logger(__name__)

#: The stream of all changes, in the order in which every replica applies them.
LOG_KEY = "shared:grades:log"


def create(context: Context) -> Service:
    """Return the service, with its settings from the environment."""
    settings = GradesSettings()
    # Raises SetupError if others can reach this replica and the password is empty or well known.
    refuse_known(context.settings.host, "GRADES_PASSWORD", settings.password)
    if settings.password.get_secret_value() == TRIAL_PASSWORD:
        log.warning("default password in use", setting="GRADES_PASSWORD")
    replication = Replication(settings, GradesMetrics(context.metrics))

    # A function, because `context.mesh` exists only during a membership.
    def store_room(byte_count: int) -> None:
        context.mesh.memory.store(byte_count)

    routes = GradesRoutes(replication, settings, store_room)

    @contextlib.asynccontextmanager
    async def lifespan(replica: Mesh) -> AsyncIterator[None]:
        async def find_peers() -> list[Source]:
            return await peer_sources(replica.roster, replica.missing, replica.id, settings)

        routes.auth.open(CredentialLimiter(replica.shared, Limits()), Audit(replica.shared))
        grades_log = Log(replica.shared, replica.connect, LOG_KEY, writer=replica.id)
        async with replication.following(grades_log, find_peers):
            yield

    async def read_panel(replica: Mesh) -> Panel:
        # This object only looks at the log. It opens no connection of its own, so it need not be closed.
        return panel.panel_of(
            await Log(replica.shared, replica.connect, LOG_KEY, writer=replica.id).view(), await replica.roster()
        )

    return Service(
        "grades",
        public=[routes.public],
        private=[routes.private],
        lifespan=lifespan,
        trouble=lambda: replication.explanation,
        told=lambda: {panel.POSITION_FIELD: "" if replication.number is None else str(replication.number)},
        panel=read_panel,
    )
