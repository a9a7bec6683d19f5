"""Basic authentication: guesses are limited, and the right password costs one look at Redis a minute."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any

import pytest
from pydantic import SecretStr
from quart import Quart, request
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh import keys
from quart_app.http import problems
from quart_app.security import basic
from quart_app.security.audit import Audit
from quart_app.security.basic import BasicAuth
from quart_app.security.credentials import CredentialLimiter, Limits

AWAY = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))


class Site:
    """One guarded route."""

    def __init__(self) -> None:
        self.auth = BasicAuth("grades", "grades", SecretStr("correct horse"))
        self.app = Quart(__name__)
        problems.install(self.app)
        self.app.add_url_rule("/backup", "backup", self.backup)

    def open(self, redis: Redis) -> Site:
        limits = Limits(most_per_pair=5, most_per_source=8)
        self.auth.open(CredentialLimiter(redis, limits), Audit(redis))
        return self

    async def backup(self) -> str:
        await self.auth.check(request)
        return "all grades"

    async def ask(self, password: str = "correct horse", source: str = "192.0.2.1") -> Any:
        words = b64encode(f"grades:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {words}"}
        return await self.app.test_client().get("/backup", headers=headers, scope_base={"client": (source, 1)})


async def test_guesses_are_limited(shared: Redis) -> None:
    """429, after which even the right password waits; a source that used it before does not."""
    site = Site().open(shared)
    assert (await site.ask()).status_code == 200
    guesses = await asyncio.gather(*(site.ask(f"guess {n}", "203.0.113.9") for n in range(90)))
    assert sorted(answer.status_code for answer in guesses) == [401] * 5 + [429] * 85
    assert (await site.ask("correct horse", "203.0.113.9")).status_code == 429
    assert (await site.ask()).status_code == 200
    events = [entry["event"] for _, entry in await shared.xrange(keys.AUDIT)]
    assert events.count("basic login failed") == 5 and events.count("basic login locked") == 1


async def test_a_right_password_is_believed_for_a_minute(shared: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the minute, Redis is not asked for the same source."""
    site = Site().open(shared)
    now = 1000.0
    monkeypatch.setattr(basic.time, "monotonic", lambda: now)
    assert (await site.ask()).status_code == 200
    site.open(AWAY)
    assert (await site.ask()).status_code == 200
    assert (await site.ask(source="198.51.100.1")).status_code == 503
    assert (await site.ask("guess")).status_code == 503
    now += basic.BELIEVED_S
    assert (await site.ask()).status_code == 503


async def test_before_the_replica_is_a_member_nothing_is_compared() -> None:
    """Any password gets 503; a request without one gets 401, as always."""
    site = Site()
    assert [(await site.ask(word)).status_code for word in ("correct horse", "guess")] == [503, 503]
    answer = await site.app.test_client().get("/backup")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="grades", charset="UTF-8"')


async def test_who_is_believed_is_bounded(shared: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of sources does not matter."""
    monkeypatch.setattr(basic, "MOST_BELIEVED", 3)
    site = Site().open(shared)
    for number in range(10):
        assert (await site.ask(source=f"192.0.2.{number}")).status_code == 200
    assert len(site.auth._believed) <= 3
