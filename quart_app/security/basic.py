"""Basic authentication of one user, behind the limit on guessing."""

from __future__ import annotations

import hashlib
import hmac
import time

from pydantic import SecretStr
from quart import Request

from mesh import Unavailable
from quart_app.http.problems import Problem
from quart_app.security.audit import Audit
from quart_app.security.credentials import CredentialLimiter

#: How long a right password is believed from the same address without asking Redis again. A longer time saves more
#: trips to Redis, and outlasts a longer failure of Redis.
BELIEVED_S = 60.0
#: The most pairs of an address and a password that are believed at once. If there is one more, all others are
#: forgotten: the next request of each of them then asks Redis again.
MOST_BELIEVED = 1024


class BasicAuth:
    """The one user and password of a service.

    A password that was right is believed for a minute from the same address. So other replicas and operators cost no
    trip to Redis, and are served while Redis is away. For every other request, the limiter must admit the attempt
    before the password is compared.
    """

    def __init__(self, service: str, username: str, password: SecretStr) -> None:
        self._service = service
        self._username = username.encode()
        self._password = password
        self._challenge = f'Basic realm="{service}", charset="UTF-8"'
        #: digest of address, user and password -> until when it is believed, on the monotonic clock; emptied when there
        #: are MOST_BELIEVED
        self._believed: dict[bytes, float] = {}
        self._limiter: CredentialLimiter | None = None
        self._audit: Audit | None = None

    def open(self, limiter: CredentialLimiter, audit: Audit) -> None:
        """Begin to admit requests. Call it when the replica is a member."""
        self._limiter, self._audit = limiter, audit

    async def check(self, request: Request) -> None:
        """Return if the request has the right user and password. Raises Problem (401), TooManyAttempts, Unavailable."""
        credentials = request.authorization
        if credentials is None or credentials.type != "basic":
            raise self._refusal()
        address = request.remote_addr
        digest = hashlib.sha256(
            f"{address}\n{credentials.username}\n{credentials.password}".encode("utf-8", "replace")
        ).digest()
        if self._believed.get(digest, 0.0) > time.monotonic():
            return
        if self._limiter is None or self._audit is None:
            raise Unavailable("this replica holds no lease yet; try again")
        # The account of the limiter is the service, because it has one user.
        attempt = await self._limiter.admit(f"basic {self._service}", address)
        if not self._is_right(credentials.username or "", credentials.password or ""):
            await self._audit.record("basic login failed", service=self._service, source=address)
            if attempt.is_last:
                await self._audit.record("basic login locked", service=self._service, source=address)
            raise self._refusal()
        await self._limiter.excuse(attempt)
        self._remember_digest(digest)

    def _is_right(self, username: str, password: str) -> bool:
        """Return whether these are the user and password of the service."""
        # Both user and password are always compared (`&`, not `and`), and in a time that does not depend on where they
        # differ.
        is_right_user = hmac.compare_digest(username.encode("utf-8", "replace"), self._username)
        password_bytes = self._password.get_secret_value().encode()
        return hmac.compare_digest(password.encode("utf-8", "replace"), password_bytes) & is_right_user

    def _remember_digest(self, digest: bytes) -> None:
        """Believe this address, user and password for BELIEVED_S."""
        if len(self._believed) >= MOST_BELIEVED:
            self._believed.clear()
        self._believed[digest] = time.monotonic() + BELIEVED_S

    def _refusal(self) -> Problem:
        """Return the problem that makes a browser ask for user and password."""
        return Problem(
            401, "give the user and the password of this service", headers={"WWW-Authenticate": self._challenge}
        )
