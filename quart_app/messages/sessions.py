"""Who is logged in: a signed token in a cookie, checked against the store on every request.

The token proves who logged in and when. What a user may do is never in it: that is read from the store each time.
Its times are Redis's, like every shared time here, so that no replica's clock ends a session early or late.

    shared:messages:revoked:{jti}    string, PX  a session that was logged out, until it would have ended
    shared:messages:attempts:{hash}  counter, PX failed logins of one email
    shared:messages:signing-key      string      the secret, where the environment gives none
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from redis.asyncio import Redis

from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import User, redis_at_work, user_key

ALGORITHM = "HS256"
REQUIRED = ["exp", "iat", "aud", "iss", "jti", "sub"]
#: A new Redis master's clock may be behind the old one's by this much.
CLOCK_STEP_S = 30
SIGNING_KEY = "shared:messages:signing-key"


class NotLoggedIn(Exception):
    """No session, or one that is over."""


@dataclass(frozen=True, slots=True)
class Session:
    """A login that holds."""

    id: str
    expires_s: int
    user: User


@dataclass(frozen=True, slots=True)
class Keys:
    """The secret that signs, and the one before it, which is still believed."""

    current: str
    previous: str | None = None

    def named(self) -> dict[str, str]:
        return {key_id(secret): secret for secret in (self.previous, self.current) if secret}


def key_id(secret: str) -> str:
    """A name for a secret that says nothing about it."""
    return hashlib.sha256(b"name of the key " + secret.encode()).hexdigest()[:12]


async def load_keys(redis: Redis, settings: MessageSettings) -> Keys:
    """From the settings; else the one that all replicas share, made by whoever comes first."""
    previous = settings.jwt_previous_secret.get_secret_value() if settings.jwt_previous_secret else None
    if settings.jwt_secret:
        return Keys(settings.jwt_secret.get_secret_value(), previous)
    async with redis_at_work():
        await redis.set(SIGNING_KEY, secrets.token_urlsafe(48), nx=True)
        return Keys(str(await redis.get(SIGNING_KEY)), previous)


class Sessions:
    """Begins, checks and ends sessions. Every method raises Unavailable when Redis does not do its part."""

    def __init__(self, redis: Redis, keys: Keys, settings: MessageSettings) -> None:
        self._redis = redis
        self._keys = keys
        self._settings = settings

    async def begin(self, user: User) -> str:
        """A token for the user, to be kept in a cookie."""
        now = await self._now()
        claims = {
            "sub": user.id,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "exp": now + self._settings.session_s,
            "iss": self._settings.jwt_issuer,
            "aud": self._settings.jwt_audience,
            "generation": user.generation,
        }
        return jwt.encode(claims, self._keys.current, ALGORITHM, headers={"kid": key_id(self._keys.current)})

    async def check(self, token: str | None) -> Session:
        """The session of a token. Raises NotLoggedIn."""
        claims = self._read(token)
        async with redis_at_work():
            asked = self._redis.pipeline(transaction=False)
            asked.time()
            asked.exists(_revoked(claims["jti"]))
            asked.hgetall(user_key(claims["sub"]))
            (now, _), revoked, stored = await asked.execute()
        user = User.of(stored)
        if user is None or revoked or not user.is_active or claims.get("generation") != user.generation:
            raise NotLoggedIn("log in again")
        if not claims["iat"] - CLOCK_STEP_S <= int(now) < claims["exp"]:
            raise NotLoggedIn("this session is over; log in again")
        return Session(claims["jti"], claims["exp"], user)

    async def end(self, session: Session) -> None:
        """Nobody can use this session's token any more."""
        async with redis_at_work():
            await self._redis.set(_revoked(session.id), "logged out", exat=session.expires_s + 1)

    async def count_attempt(self, email: str) -> float | None:
        """Note a login that is being tried. Not None: too many; in how many seconds the next may be."""
        key = _attempts(email)
        async with redis_at_work():
            asked = self._redis.pipeline(transaction=True)
            asked.incr(key)
            asked.pexpire(key, self._settings.login_wait_s * 1000, nx=True)
            asked.pttl(key)
            tries, _, left_ms = await asked.execute()
        return left_ms / 1000 if tries > self._settings.login_tries else None

    async def forget_attempts(self, email: str) -> None:
        """The login worked."""
        async with redis_at_work():
            await self._redis.delete(_attempts(email))

    def _read(self, token: str | None) -> dict[str, Any]:
        """What the token says, its signature proved. Its times are for the store's clock to judge."""
        if not token:
            raise NotLoggedIn("log in first")
        try:
            secret = self._keys.named()[str(jwt.get_unverified_header(token).get("kid"))]
            claims: dict[str, Any] = jwt.decode(
                token,
                secret,
                algorithms=[ALGORITHM],
                issuer=self._settings.jwt_issuer,
                audience=self._settings.jwt_audience,
                options={"require": REQUIRED, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, KeyError, ValueError):
            raise NotLoggedIn("this is no session of ours; log in again") from None
        _refuse_odd_types(claims, ("iat", "exp"))
        return claims

    async def _now(self) -> int:
        async with redis_at_work():
            seconds, _ = await self._redis.time()
        return int(seconds)


def _refuse_odd_types(claims: dict[str, Any], numbers: Sequence[str]) -> None:
    if not all(isinstance(claims[name], int) for name in numbers):
        raise NotLoggedIn("this is no session of ours; log in again")


def _revoked(session_id: str) -> str:
    return f"shared:messages:revoked:{session_id}"


def _attempts(email: str) -> str:
    return f"shared:messages:attempts:{hashlib.sha256(email.encode()).hexdigest()[:32]}"
