"""Sessions and devices: which tokens are accepted, and which clock counts."""

from __future__ import annotations

import itertools
import time
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis

from quart_app.messages.sessions import (
    ALGORITHM,
    DEVICE_KNOWN_S,
    NotLoggedIn,
    Sessions,
    SigningSecrets,
    load_signing_secrets,
    secret_name,
)
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import User, Users

SECRET, OLDER, OTHER = "s" * 40, "o" * 40, "x" * 40
SETTINGS = MessageSettings()


def sessions(redis: Redis, keys: SigningSecrets | None = None, **settings: Any) -> Sessions:
    return Sessions(redis, keys or SigningSecrets(SECRET), MessageSettings(**settings))


@pytest.fixture
async def user(shared: Redis) -> User:
    return await Users(shared).register("a@example.com", "hash")


async def test_a_session_is_valid_until_the_logout(shared: Redis, user: User) -> None:
    """After it, the token is refused on every replica."""
    token = await sessions(shared).begin(user)
    session = await sessions(shared).check(token)
    assert session.user == user
    await sessions(shared).end(session)
    with pytest.raises(NotLoggedIn):
        await sessions(shared).check(token)
    assert 0 < await shared.ttl(f"shared:messages:revoked:{session.id}") <= SETTINGS.session_s + 1


async def test_two_keys_are_accepted_during_a_change(shared: Redis, user: User) -> None:
    """A token of the previous key is valid as long as the settings name that key."""
    old = await sessions(shared, SigningSecrets(OLDER)).begin(user)
    await sessions(shared, SigningSecrets(SECRET, OLDER)).check(old)
    with pytest.raises(NotLoggedIn):
        await sessions(shared, SigningSecrets(SECRET)).check(old)


async def test_the_key_is_changed_without_a_lost_session(shared: Redis, user: User) -> None:
    """The steps of docs/operations.md: replicas of neighbouring steps accept each other's tokens."""
    steps = [
        SigningSecrets(OLDER),
        SigningSecrets(OLDER, SECRET),
        SigningSecrets(SECRET, OLDER),
        SigningSecrets(SECRET),
    ]
    for one, other in itertools.pairwise(steps):
        await sessions(shared, other).check(await sessions(shared, one).begin(user))
        await sessions(shared, one).check(await sessions(shared, other).begin(user))


async def test_the_clock_of_redis_counts(shared: Redis, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica whose clock is wrong by an hour neither ends nor prolongs a session."""
    token = await sessions(shared, session_s=60).begin(user)
    away = time.time() + 3600
    monkeypatch.setattr(jwt.api_jwt, "datetime", _Fixed(away))
    await sessions(shared).check(token)


class _Fixed:
    """A clock that is wrong by some seconds."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self, tz: Any = None) -> Any:
        from datetime import datetime

        return datetime.fromtimestamp(self._now, tz)


async def claims_of(redis: Redis, user: User) -> dict[str, Any]:
    token = await sessions(redis).begin(user)
    options: Any = {"verify_signature": False}
    return jwt.decode(token, options=options)


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = ALGORITHM, kid: str | None = None) -> str:
    return jwt.encode(claims, secret, algorithm, headers={"kid": kid or secret_name(secret)})


@pytest.mark.parametrize(
    "change",
    [
        {"exp": 1},
        {"iat": 4_000_000_000},
        {"exp": None},
        {"iat": None},
        {"jti": None},
        {"sub": None},
        {"iss": "another"},
        {"aud": "another"},
        {"sub": "nobody"},
        {"generation": 2},
        {"generation": None},
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(shared: Redis, user: User, change: dict[str, Any]) -> None:
    """Every claim is required, and each is checked."""
    claims = await claims_of(shared, user) | change
    with pytest.raises(NotLoggedIn):
        await sessions(shared).check(signed({name: value for name, value in claims.items() if value is not None}))


async def test_a_forged_token_is_refused(shared: Redis, user: User) -> None:
    """The token has another key, another algorithm or no signature, or is no token."""
    claims = await claims_of(shared, user)
    await sessions(shared).check(signed(claims))
    forged = [
        signed(claims, OTHER),
        signed(claims, OTHER, kid=secret_name(SECRET)),
        signed(claims, SECRET * 2, "HS512", kid=secret_name(SECRET)),
        jwt.encode(claims, None, "none", headers={"kid": secret_name(SECRET)}),
        jwt.encode(claims, SECRET, ALGORITHM),
        signed(claims)[:-2],
        "a.b.c",
        "",
        None,
    ]
    for token in forged:
        with pytest.raises(NotLoggedIn):
            await sessions(shared).check(token)


async def test_a_session_ends_with_a_change_of_the_account(shared: Redis, user: User) -> None:
    """Deactivation, a new password and a new address; activating the account again does not revive it."""
    users = Users(shared)
    await users.create_first_admin("admin@example.com", "hash")
    admin = await users.find_by_email("admin@example.com")
    assert admin is not None
    tokens = [await sessions(shared).begin(user)]
    await users.change_access(user.id, {"is_active": False}, actor=admin, source=None)
    await refused(shared, tokens)
    user = await users.change_access(user.id, {"is_active": True}, actor=admin, source=None)
    await refused(shared, tokens)
    for change in ({"password_hash": "other hash"}, {"email": "other@example.com"}):
        tokens.append(await sessions(shared).begin(user))
        await sessions(shared).check(tokens[-1])
        user = await users.change_profile(user, **change)
        await refused(shared, tokens)


async def refused(shared: Redis, tokens: list[str]) -> None:
    """None of these tokens is a session."""
    for token in tokens:
        with pytest.raises(NotLoggedIn):
            await sessions(shared).check(token)


async def test_a_device_is_known_to_one_account(shared: Redis, user: User) -> None:
    """A device is known until the account's password or address changes; its token opens no session."""
    users, here = Users(shared), sessions(shared)
    token = await here.new_device_token(user)
    device = here.known_device_id(token, user)
    assert device and here.known_device_id(token, user) == device
    other = await users.register("other@example.com", "hash")
    assert here.known_device_id(token, other) is None and here.known_device_id(token, None) is None
    with pytest.raises(NotLoggedIn):
        await here.check(token)
    assert here.known_device_id(await here.begin(user), user) is None
    for forged in (None, "", "a.b.c", token[:-2], signed(await claims_of(shared, user))):
        assert here.known_device_id(forged, user) is None
    assert here.known_device_id(token, await users.change_profile(user, password_hash="other hash")) is None


async def test_a_device_is_forgotten_after_a_while(shared: Redis, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is forgotten half a year after the login."""
    here = sessions(shared)
    token = await here.new_device_token(user)
    later = time.time() + DEVICE_KNOWN_S + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert here.known_device_id(token, user) is None


async def test_replicas_without_a_signing_key_create_one_for_all(shared: Redis) -> None:
    """The first replica creates it in Redis; no default is in the code."""
    first, second = await load_signing_secrets(shared, SETTINGS), await load_signing_secrets(shared, SETTINGS)
    assert first == second and len(first.current) >= 32
    given = MessageSettings(jwt_secret=SECRET, jwt_previous_secret=OLDER)  # type: ignore[arg-type]
    assert await load_signing_secrets(shared, given) == SigningSecrets(SECRET, OLDER)


def test_a_short_secret_stops_the_start() -> None:
    """HS256 needs a key of 32 bytes."""
    with pytest.raises(ValueError, match="32 bytes"):
        MessageSettings(jwt_secret="short")  # type: ignore[arg-type]
