"""The Redis password is changed while the mesh works: docs/operations.md, "Change a secret"."""

from __future__ import annotations

import redis

from tests.support.replicas import Replicas


async def test_the_redis_password_is_changed_without_a_failed_request(replicas: Replicas) -> None:
    """The server knows both, new replicas use the new one, then the old one is removed; leases have their own."""
    with replicas.server.redis() as client:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">old")
    port = replicas.server.port
    (first,) = await replicas(1, {"REDIS_URL": f"redis://:old@127.0.0.1:{port}/0"})
    administrator = redis.Redis(port=port, password="old")
    administrator.execute_command("ACL", "SETUSER", "default", ">new")
    (second,) = await replicas(1, {"REDIS_URL": f"redis://:new@127.0.0.1:{port}/0"})
    redis.Redis(port=port, password="new").execute_command("ACL", "SETUSER", "default", "<old")
    for process in (first, second):
        classes = (await replicas.client.get(process.public + "/classes")).json()
        posted = await replicas.client.post(
            process.public + "/values", json=[{"value": 10, "ttl": 60, "cls": cls} for cls in classes]
        )
        assert posted.status_code == 200
