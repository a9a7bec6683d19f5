"""Sessions and known devices: signed tokens in cookies.

A session's token says who logged in and when. With each request the replica checks the token against Redis, and reads
there what the account may do. The times in tokens are those of Redis's clock, so that no replica's clock ends a session
early or late.

A device's token says that somebody has logged in to this account on this device before. It gives no access. Its only
effect is that the device has login attempts of its own. Others who guess the password cannot use these up.

    shared:messages:revoked:{jti}    string, PX  a session that was logged out, until it would have ended
    shared:messages:signing-key      string      the secret that signs tokens, if the settings have none
"""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from redis.asyncio import Redis

from mesh import Script
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import User, translated_redis_errors, user_key

#: The algorithm that signs tokens: HMAC with SHA-256 (RFC 7518).
ALGORITHM = "HS256"
#: The claims (fields, RFC 7519) of every token. `sub` is the id of the account, `jti` that of the session or device.
REQUIRED_CLAIMS = ["exp", "iat", "aud", "iss", "jti", "sub"]
#: A token may be from this far in the future: after a failover, Redis's clock may be behind that of the old master.
#: After a step of the clock that is larger than this, users with newer tokens must log in again.
MOST_CLOCK_STEP_S = 30
#: How long a device is known after a login. Half a year, so that users who seldom log in keep attempts of their own.
#: With a longer time, a stolen device token is good for longer.
DEVICE_KNOWN_S = 180 * 86_400
#: Ends one session on all replicas.
REVOKE = Script.beside(__file__, "revoke.lua")
REDIS_KEY_OF_SECRET = "shared:messages:signing-key"


class NotLoggedIn(Exception):
    """There is no session, or it is over."""


@dataclass(frozen=True, slots=True)
class Session:
    """A valid login."""

    #: the claim `jti` of its token
    id: str
    #: when it ends: Unix time in s, by Redis's clock
    ends_at_s: int
    user: User


@dataclass(frozen=True, slots=True)
class SigningSecrets:
    """The secret that signs new tokens, and a second secret, whose tokens are accepted, too.

    The second secret is the former one. While replicas get a new secret one by one, it may also be the new one.
    """

    #: signs, and is accepted
    current: str
    also_accepted: str | None = None

    def by_name(self) -> dict[str, str]:
        """Return each secret under its name, which a token carries as `kid`."""
        return {secret_name(secret): secret for secret in (self.also_accepted, self.current) if secret}


def secret_name(secret: str) -> str:
    """Return a name for a secret, 12 digits of a hash. The name does not reveal the secret.

    With fewer digits, two secrets might have the same name. The prefix makes this hash one that nothing else computes.
    """
    return hashlib.sha256(b"name of the key " + secret.encode()).hexdigest()[:12]


async def load_signing_secrets(redis: Redis, settings: MessageSettings) -> SigningSecrets:
    """Return the secrets of the settings. If these have none, use the one in Redis, which the first replica creates."""
    also_accepted = settings.jwt_previous_secret.get_secret_value() if settings.jwt_previous_secret else None
    if settings.jwt_secret:
        return SigningSecrets(settings.jwt_secret.get_secret_value(), also_accepted)
    async with translated_redis_errors():
        # Read first: when memory is full, the server refuses every SET, even one that would change nothing.
        if not (stored_secret := await redis.get(REDIS_KEY_OF_SECRET)):
            # 48 random bytes; HS256 needs at least 32 (RFC 7518). With `nx`, the secret of the first replica stays.
            await redis.set(REDIS_KEY_OF_SECRET, secrets.token_urlsafe(48), nx=True)
            stored_secret = await redis.get(REDIS_KEY_OF_SECRET)
        return SigningSecrets(str(stored_secret), also_accepted)


class Sessions:
    """Begins, checks and ends sessions. Methods that need Redis raise Unavailable when it does not answer."""

    def __init__(self, redis: Redis, signing_secrets: SigningSecrets, settings: MessageSettings) -> None:
        self._redis = redis
        self._signing_secrets = signing_secrets
        self._settings = settings

    async def begin(self, user: User) -> str:
        """Return the token of a new session of this account."""
        return self._new_token(user, await self._redis_now_s(), self._settings.session_s, self._settings.jwt_audience)

    async def check(self, token: str | None) -> Session:
        """Return the session of a token. Raises NotLoggedIn."""
        claims = self._signed_claims(token, self._settings.jwt_audience)
        async with translated_redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.time()
            pipeline.exists(_revocation_key(claims["jti"]))
            pipeline.hgetall(user_key(claims["sub"]))
            (redis_now_s, _), is_revoked, stored_user = await pipeline.execute()
        user = User.of(stored_user)
        # A change of the account that ends its sessions has raised `generation`: see `users`.
        if user is None or is_revoked or not user.is_active or claims.get("generation") != user.generation:
            raise NotLoggedIn("log in again")
        if not _is_in_time(claims, int(redis_now_s)):
            raise NotLoggedIn("this session is over; log in again")
        return Session(claims["jti"], claims["exp"], user)

    async def end(self, session: Session) -> None:
        """Make the session's token invalid on every replica."""
        async with translated_redis_errors():
            # One second more than the token, so that a token never outlives its revocation.
            await REVOKE.run(self._redis, [_revocation_key(session.id)], session.ends_at_s + 1)

    async def new_device_token(self, user: User) -> str:
        """Return a token for a device on which somebody has just logged in to this account. Redis stores nothing."""
        return self._new_token(user, await self._redis_now_s(), DEVICE_KNOWN_S, self._device_audience)

    def known_device_id(self, token: str | None, user: User | None) -> str | None:
        """Return the id of the device if it is known to this account, or None. This does not need Redis."""
        try:
            claims = self._signed_claims(token, self._device_audience)
        except NotLoggedIn:
            return None
        # A change of the password raises the generation, so no device is known afterwards. The expiry is compared with
        # the clock of this process. If that clock is wrong, a device counts as a stranger too early or stays known too
        # long. Neither gives anybody access.
        is_known = (
            user is not None
            and (claims["sub"], claims.get("generation")) == (user.id, user.generation)
            and _is_in_time(claims, int(time.time()))
        )
        return str(claims["jti"]) if is_known else None

    @property
    def _device_audience(self) -> str:
        return f"{self._settings.jwt_audience}-device"

    def _new_token(self, user: User, now_s: int, lifetime_s: int, audience: str) -> str:
        """Return a signed token; `audience` says for what it may be used. A new generation of the user ends it."""
        claims = {
            "sub": user.id,
            "jti": uuid.uuid4().hex,
            "iat": now_s,
            "exp": now_s + lifetime_s,
            "iss": self._settings.jwt_issuer,
            "aud": audience,
            "generation": user.generation,
        }
        return jwt.encode(
            claims,
            self._signing_secrets.current,
            ALGORITHM,
            headers={"kid": secret_name(self._signing_secrets.current)},
        )

    def _signed_claims(self, token: str | None, audience: str) -> dict[str, Any]:
        """Return the claims of a token if its signature is right. The caller checks its times. Raises NotLoggedIn."""
        if not token:
            raise NotLoggedIn("log in first")
        # PyJWT would compare the times with the clock of this process, so the options turn these checks off. A KeyError
        # means that no present secret has the name in the token.
        try:
            secret = self._signing_secrets.by_name()[str(jwt.get_unverified_header(token).get("kid"))]
            claims: dict[str, Any] = jwt.decode(
                token,
                secret,
                algorithms=[ALGORITHM],
                issuer=self._settings.jwt_issuer,
                audience=audience,
                options={"require": REQUIRED_CLAIMS, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, KeyError, ValueError):
            raise NotLoggedIn("this is not a session token; log in again") from None
        _refuse_unless_integers(claims, ("iat", "exp"))
        return claims

    async def _redis_now_s(self) -> int:
        async with translated_redis_errors():
            seconds, _ = await self._redis.time()
        return int(seconds)


def _is_in_time(claims: dict[str, Any], now_s: int) -> bool:
    return bool(claims["iat"] - MOST_CLOCK_STEP_S <= now_s < claims["exp"])


def _refuse_unless_integers(claims: dict[str, Any], claim_names: Sequence[str]) -> None:
    """Raise NotLoggedIn unless these claims are integers. PyJWT does not check times that it does not compare."""
    if not all(isinstance(claims[name], int) for name in claim_names):
        raise NotLoggedIn("this is not a session token; log in again")


def _revocation_key(session_id: str) -> str:
    return f"shared:messages:revoked:{session_id}"
