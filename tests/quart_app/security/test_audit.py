"""The audit log: readable entries, a bounded stream, and no request that fails because of it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from structlog.testing import capture_logs

from mesh import keys
from quart_app.security import audit
from quart_app.security.audit import Audit


async def test_an_event_is_in_the_log_and_on_the_stream(shared: Redis) -> None:
    """An event has plain fields; absent facts are left out."""
    with capture_logs() as logged:
        await Audit(shared).record("login failed", user=None, source="192.0.2.1")
    assert [entry for _, entry in await shared.xrange(keys.AUDIT)] == [{"event": "login failed", "source": "192.0.2.1"}]
    assert logged == [{"event": "login failed", "source": "192.0.2.1", "log_level": "warning"}]


async def test_the_stream_has_a_bound(shared: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries go first."""
    monkeypatch.setattr(keys, "AUDIT_KEPT", 100)
    monkeypatch.setattr(audit, "MAX_PER_SECOND", 10_000)
    log = Audit(shared)
    for number in range(1000):
        await log.record("login", user=str(number))
    kept = [entry["user"] for _, entry in await shared.xrange(keys.AUDIT)]
    assert 100 <= len(kept) <= 300 and kept[-1] == "999"


async def test_a_flood_is_logged_but_not_all_of_it_written(shared: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events cost Redis at most so many writes a second."""
    monkeypatch.setattr(audit.time, "monotonic", lambda: 1.0)
    log = Audit(shared)
    with capture_logs() as logged:
        for _ in range(audit.MAX_PER_SECOND + 50):
            await log.record("origin refused")
    assert (await shared.xlen(keys.AUDIT), len(logged)) == (audit.MAX_PER_SECOND, audit.MAX_PER_SECOND + 50)
    monkeypatch.setattr(audit.time, "monotonic", lambda: 2.0)
    await log.record("origin refused")
    assert await shared.xlen(keys.AUDIT) == audit.MAX_PER_SECOND + 1


async def test_a_stream_that_cannot_be_written_fails_no_request() -> None:
    """The event is in the log, and that it is not on the stream."""
    away = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    with capture_logs() as logged:
        await Audit(away).record("login", user="1")
    assert [entry["event"] for entry in logged] == ["login", "audit entry not written"]
