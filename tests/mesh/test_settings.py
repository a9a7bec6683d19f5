"""Settings come from the environment, secrets from files too; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mesh import Isolation, MeshSettings, RedisSettings


def test_the_names_of_the_task_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """REDIS_HOST, REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD, REDIS_DB."""
    for name, value in {"HOST": "redis", "PORT": "7000", "USERNAME": "u", "PASSWORD": "p", "DB": "2"}.items():
        monkeypatch.setenv(f"REDIS_{name}", value)
    redis = MeshSettings().redis
    assert (redis.host, redis.port, redis.username, redis.db) == ("redis", 7000, "u", 2)
    assert redis.password is not None and redis.password.get_secret_value() == "p"
    assert "p" not in repr(redis.password)


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    """As containers mount them: named like the setting, in lower case."""
    (tmp_path / "redis_password").write_text("from a file")
    password = RedisSettings(_secrets_dir=tmp_path).password  # type: ignore[call-arg]
    assert password is not None and password.get_secret_value() == "from a file"


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass empty ones on."""
    monkeypatch.setenv("MESH_CLASS", "")
    monkeypatch.setenv("MESH_LEASE_TTL_MS", "")
    settings = MeshSettings()
    assert (settings.class_, settings.lease_ttl_ms, settings.isolation) == (None, 3000, Isolation.ACL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESH_CLASS", "AB"),
        ("MESH_CLASS", "a"),
        ("MESH_CLASS", "1"),
        ("MESH_ISOLATION", "none"),
        ("MESH_CLASS_POLICY", "best"),
        ("MESH_LEASE_TTL_MS", "0"),
        ("MESH_DATABASES", "17"),
        ("MESH_DATABASES", "0"),
        ("MESH_MAX_DELIVERIES", "none"),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Before anything else happens."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        MeshSettings()


def test_times_that_follow_from_others_keep_their_proportions() -> None:
    """Several renewals fit in a lease, several looks in the claim idle time."""
    for ttl_ms in (500, 3000, 60_000):
        assert 4 * MeshSettings(lease_ttl_ms=ttl_ms).renew_interval_ms <= ttl_ms
    for idle_ms in (200, 2000, 60_000):
        assert 4 * MeshSettings(claim_idle_ms=idle_ms).keep_alive_ms <= idle_ms
    assert MeshSettings(claim_idle_ms=60_000).keep_alive_ms <= 500, "so that who is not waited for stops soon"


def test_a_setting_may_be_given_by_the_name_of_its_field_and_no_other() -> None:
    """Whoever embeds a replica is not to find out later that a setting was passed over."""
    assert MeshSettings(class_="B").class_ == "B"
    with pytest.raises(ValidationError, match="clas"):
        MeshSettings(clas="B")  # type: ignore[call-arg]
