"""Whether a process lives, whether it may be sent requests, and why not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from mesh import MeshSettings
from mesh.raw import Worker, join
from quart_app.http import health
from tests.support.nodes import applications, node
from tests.support.server import Server
from tests.support.waiting import eventually


async def test_a_replica_without_a_lease_lives_and_is_not_ready() -> None:
    """Both ports give the reason, and a time to ask again."""
    app = applications()
    for client in (app.public.test_client(), app.private.test_client()):
        assert (await client.get("/health")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, (await ready.get_json())["detail"]) == (503, "starting")
        assert ready.headers["Retry-After"] == "1"
    app.reason = ""
    assert "holds no lease" in (await (await app.public.test_client().get("/readyz")).get_json())["detail"]


async def test_who_asks_whether_a_replica_is_ready_fills_no_log() -> None:
    """A balancer asks all the time. The reason is logged on change and once a minute; other errors are all logged."""
    client = applications().public.test_client()
    with capture_logs() as said:
        assert [(await client.get(path)).status_code for path in ("/readyz", "/classes")] == [503, 503]
    assert [line["log_level"] for line in said if line["event"] == "request"] == ["debug", "warning"]


async def test_a_route_that_needs_the_mesh_is_503_while_there_is_none() -> None:
    """Such a route is never answered with 500 or 404."""
    client = applications().public.test_client()
    for path in ("/classes", "/values/7"):
        response = await client.get(path)
        assert response.status_code == 503 and response.headers["Retry-After"]


async def test_a_ready_replica_says_who_it_is(server: Server) -> None:
    """The answer has the database and the class, as in the roster."""
    async with node(MeshSettings(redis=server.settings)) as one:
        answer = await (await one.public.get("/readyz")).get_json()
        assert answer == {
            "status": "ready",
            "replica": one.replica.id,
            "database": 1,
            "class": "A",
            "not_ready": {},
            "full": False,
        }


async def test_readyz_names_a_service_that_is_not_ready_and_the_replica_serves_the_others(
    server: Server, tmp_path: Path
) -> None:
    """A movements database that is no database: 200 with the reason, `/classes` goes on, movements answer 503."""
    broken = tmp_path / "movements.db"
    broken.write_bytes(b"this is not a database" * 1000)
    settings = MeshSettings(redis=server.settings)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOVEMENTS_DB_PATH", str(broken))
        async with node(settings, services="values,movements") as one:
            answer = await (await one.public.get("/readyz")).get_json()
            assert answer["status"] == "ready"
            assert "database" in answer["not_ready"]["movements"]
            assert (await one.public.get("/classes")).status_code == 200
            refused = await one.public.get(f"/api/movements/{uuid4()}")
            assert refused.status_code == 503 and refused.headers["Retry-After"]
            metrics = (await (await one.private.get("/metrics")).get_data()).decode()
            assert 'mesh_service_ready{service="movements"} 0.0' in metrics
            assert 'mesh_service_ready{service="values"} 1.0' in metrics


async def test_the_roster_says_ready_only_when_the_replica_is(server: Server) -> None:
    """A replica is `starting` in the roster until it is ready; then its row names services that are not."""
    worker, settings = Worker(), MeshSettings(redis=server.settings)
    trouble = ["grades"]
    async with join(worker, settings, ready=False) as replica:
        (row,) = await replica.roster()
        assert row.state == "starting"
        replica.announce(lambda: trouble)

        async def rows() -> list[tuple[str, tuple[str, ...]]]:
            return [(row.state, row.not_ready) for row in await replica.roster()]

        async def told() -> bool:
            return await rows() == [("ready", ("grades",))]

        await eventually(told)
        trouble.clear()

        async def told_again() -> bool:
            return await rows() == [("ready", ())]

        await eventually(told_again)


@pytest.mark.timeout(30)
async def test_a_replica_that_does_not_reach_redis_is_not_ready_and_lives(server: Server) -> None:
    """/health does not ask Redis: a supervisor must not kill a replica that only waits."""
    async with node(MeshSettings(redis=server.settings, lease_ttl_ms=20_000)) as one:
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)

        async def not_ready() -> bool:
            return (await one.public.get("/readyz")).status_code == 503

        await eventually(not_ready)
        assert (await one.public.get("/health")).status_code == 200
        server.process.send_signal(signal.SIGCONT)

        async def ready() -> bool:
            return (await one.public.get("/readyz")).status_code == 200

        await eventually(ready)


async def test_requests_carry_an_id_through(server: Server) -> None:
    """The caller's id is used if it has the form of an id; otherwise the replica makes one."""
    client = applications().public.test_client()
    assert (await client.get("/health", headers={"X-Request-ID": "abc-1"})).headers["X-Request-ID"] == "abc-1"
    for hostile in ("x" * 200, "a b", ""):
        given = (await client.get("/health", headers={"X-Request-ID": hostile})).headers["X-Request-ID"]
        assert given != hostile and len(given) == 16


async def test_who_is_about_to_leave_closes_connections() -> None:
    """The answer closes the connection, so that the client's next request reaches another replica."""
    app = applications()
    app.reason = "this replica is about to leave"
    assert (await app.public.test_client().get("/health")).headers["Connection"] == "close"


async def test_the_reason_is_logged_on_change_and_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason that stays is not logged at every look, and its end is logged, too."""
    now = 0.0
    reasons = ["", "no lease yet", "no lease yet", "no lease yet", "Redis cannot be reached", "", ""]

    async def sleep(_: float) -> None:
        nonlocal now
        now += 40
        if not reasons:
            raise asyncio.CancelledError

    monkeypatch.setattr(health.asyncio, "sleep", sleep)
    monkeypatch.setattr(health.time, "monotonic", lambda: now)
    with capture_logs() as said, contextlib.suppress(asyncio.CancelledError):
        await health.report(lambda: reasons.pop(0))
    assert [(line["event"], line.get("reason") or line.get("was")) for line in said] == [
        ("not ready", "no lease yet"),
        ("not ready", "no lease yet"),
        ("not ready", "Redis cannot be reached"),
        ("ready again", "Redis cannot be reached"),
    ]
