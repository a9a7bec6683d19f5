"""Secrets are changed while the mesh works: docs/operations.md, "Change a secret"."""

from __future__ import annotations

from pathlib import Path

import redis

from mesh import RedisSettings
from quart_app.grades.settings import GradesSettings
from quart_app.messages.settings import MessageSettings
from quart_app.settings import AppSettings
from tests.support.replicas import Replicas

ROOT = Path(__file__).parents[2]


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


def test_every_secret_has_a_way_to_change_it() -> None:
    """Each setting that is a secret is in the section of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("## Change a secret")[2].partition("\n## ")[0]
    secrets = {
        f"{cls.model_config.get('env_prefix', '')}{name}".upper()
        for cls in (RedisSettings, AppSettings, GradesSettings, MessageSettings)
        for name, field in cls.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert {"REDIS_PASSWORD", "MESSAGES_JWT_SECRET", "PAGE_PASSWORD"} <= secrets
    assert [name for name in [*secrets, "DATABASE_URL"] if f"`{name}`" not in section] == []
