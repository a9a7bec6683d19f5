"""Builds the message service of one replica, and runs it during a membership."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from mesh import Mesh
from mesh.quota import Quota
from quart_app.messages import panel
from quart_app.messages.accounts import Accounts
from quart_app.messages.delivery import Delivery
from quart_app.messages.idempotency import IdempotencyKeys
from quart_app.messages.intake import MessageIntake
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.passwords import Passwords
from quart_app.messages.provider import ProviderClient
from quart_app.messages.routes import Backend, MessageRoutes, raise_not_ready
from quart_app.messages.sessions import Sessions, load_signing_secrets
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import Users
from quart_app.panels import Panel
from quart_app.security import identity
from quart_app.security.audit import Audit
from quart_app.security.credentials import CredentialLimiter
from quart_app.security.secrets import refuse_known
from quart_app.service import Context, Service

log = structlog.get_logger(__name__)

#: Prefix of the free provider's allowance: `shared:messages:free:allowance` and `shared:messages:free:held`.
QUOTA_PREFIX = "shared:messages:free"


class Messages:
    """The service of one process. It has a backend (what the routes need) while the replica is a member of the mesh."""

    def __init__(self, settings: MessageSettings, metrics: MessageMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._backend: Backend | None = None
        self.routes = MessageRoutes(settings, lambda: self._backend or raise_not_ready())

    @asynccontextmanager
    async def lifespan(self, replica: Mesh) -> AsyncIterator[None]:
        """Serve while the block lasts, one membership long. At its end, wait for the deliveries in progress."""
        redis, settings = replica.shared, self._settings
        audit = Audit(redis)
        accounts = Accounts(
            Users(redis),
            Sessions(redis, await load_signing_secrets(redis, settings), settings),
            Passwords(settings.hash_concurrency),
            CredentialLimiter(redis, settings.limits),
            audit,
        )
        intake = self._new_intake(replica)
        try:
            # In a thread, because the load of the rules for addresses and passwords would hold the event loop.
            await asyncio.to_thread(identity.load)
            await self._ensure_first_admin(accounts)
            async with intake.open():
                self._backend = Backend(accounts, intake, audit, replica.memory.store)
                yield
        finally:
            self._backend = None
            accounts.passwords.close()

    def _new_intake(self, replica: Mesh) -> MessageIntake:
        redis, settings = replica.shared, self._settings
        quota = self._new_quota(replica)
        free, paid = ProviderClient(settings.free_url, settings), ProviderClient(settings.paid_url, settings)
        delivery = Delivery(quota, free, paid, Users(redis), self._metrics, settings)
        idempotency_keys = IdempotencyKeys(redis, work_ms=settings.work_ms, keep_ms=settings.keep_answers_s * 1000)
        return MessageIntake(idempotency_keys, delivery)

    def _new_quota(self, replica: Mesh) -> Quota:
        settings = self._settings
        return Quota(
            replica.shared,
            QUOTA_PREFIX,
            limit=settings.free_limit,
            block_ms=settings.free_block_ms,
            hold_ms=settings.hold_ms,
        )

    async def panel(self, replica: Mesh) -> Panel:
        """Read what the live page shows of the free provider. Raises Unavailable."""
        return panel.panel_of(await self._new_quota(replica).look())

    async def _ensure_first_admin(self, accounts: Accounts) -> None:
        """Create the administrator that the settings name, once. An existing account never becomes an administrator."""
        email, password = self._settings.admin_email, self._settings.admin_password
        if not email:
            return
        recorded_email = await accounts.users.first_admin_email()
        if recorded_email is not None:
            if recorded_email != email:
                log.warning(
                    "setting ignored: the first administrator was created under another address",
                    setting="MESSAGES_ADMIN_EMAIL",
                    remedy="run: mesh admin promote EMAIL",
                )
            return
        # Without a password no account is created, and the address is only reserved.
        password_hash = None if password is None else await accounts.passwords.hash(password.get_secret_value())
        outcome = await accounts.users.create_first_admin(email, password_hash)
        if outcome == "taken":
            log.error(
                "first administrator not created: another account has the address",
                setting="MESSAGES_ADMIN_EMAIL",
                remedy="set another address, or run: mesh admin promote EMAIL",
            )
        # "recorded": another replica has done it since `first_admin_email` was read, and has logged it.
        elif outcome != "recorded":
            log.info("first administrator", outcome=outcome)


def create(context: Context) -> Service:
    """Return the service, with its settings from the environment. Raises SetupError if its secret is publicly known."""
    settings = MessageSettings()
    if settings.jwt_secret is not None:
        refuse_known(context.settings.host, "MESSAGES_JWT_SECRET", settings.jwt_secret)
    messages = Messages(settings, MessageMetrics(context.metrics))
    return Service("messages", public=[messages.routes.blueprint], lifespan=messages.lifespan, panel=messages.panel)
