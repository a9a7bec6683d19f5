"""Where others reach a replica, a default, empty or well-known secret stops the start with a sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from mesh import RedisSettings, SetupError
from quart_app.app import create_app
from quart_app.exits import EXIT_SETUP
from quart_app.security.secrets import is_loopback, refuse_known, refuse_open_redis
from quart_app.service import Context
from quart_app.settings import AppSettings

GOOD = "b0b1d6c5a94f4ae2"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("redis", False), ("127.0.0.1.example", False)),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    """Names other than localhost are others."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "secret", [None, "", "grades", "changeme123", "Changeme", "password1", "xxxxxxxxxxxx", "12345678"]
)
def test_a_known_secret_is_refused_where_others_reach_the_replica(secret: str | None) -> None:
    """The sentence names the setting and what to do, and does not repeat the secret."""
    given = None if secret is None else SecretStr(secret)
    with pytest.raises(SetupError, match=r"GRADES_PASSWORD is (not set|a well-known one), and others reach .* openssl"):
        refuse_known("0.0.0.0", "GRADES_PASSWORD", given)
    refuse_known("127.0.0.1", "GRADES_PASSWORD", given)
    refuse_known("0.0.0.0", "GRADES_PASSWORD", SecretStr(GOOD))


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        ({"host": "redis"}, True),
        ({"host": "redis", "password": "changeme123"}, True),
        ({"host": "redis", "password": GOOD}, False),
        ({"host": "127.0.0.1"}, False),
        ({"url": "redis://redis:6379/0"}, True),
        ({"url": "redis://:changeme123@redis/0"}, True),
        ({"url": f"redis://mesh:{GOOD}@redis/0"}, False),
        ({"url": "redis://localhost/0"}, False),
        ({"url": "rediss://redis/0?ssl_certfile=/tls/client.crt"}, False),
        ({"sentinels": "127.0.0.1:26379,sentinel:26379"}, True),
        ({"sentinels": "127.0.0.1:26379"}, False),
    ],
)
def test_a_redis_of_another_machine_needs_a_password(settings: dict[str, str], is_open: bool) -> None:
    """A certificate of ours does instead. A replica that only this machine reaches needs neither."""
    redis = RedisSettings(**settings)  # type: ignore[arg-type]
    refuse_open_redis("127.0.0.1", redis)
    if is_open:
        with pytest.raises(SetupError, match="REDIS_"):
            refuse_open_redis("0.0.0.0", redis)
    else:
        refuse_open_redis("0.0.0.0", redis)


def test_the_services_check_their_own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default password of the grades and a signing key that is a repetition are refused."""
    settings = AppSettings(host="0.0.0.0", services="grades")
    with pytest.raises(SetupError, match="GRADES_PASSWORD"):
        create_app(Context(settings, CollectorRegistry()))
    monkeypatch.setenv("GRADES_PASSWORD", GOOD)
    create_app(Context(settings, CollectorRegistry()))
    monkeypatch.setenv("MESSAGES_JWT_SECRET", "s" * 40)
    with pytest.raises(SetupError, match="MESSAGES_JWT_SECRET"):
        create_app(Context(settings.model_copy(update={"services": "messages"}), CollectorRegistry()))


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"SERVICES": "grades", "HOST": "0.0.0.0"}, "GRADES_PASSWORD is a well-known one"),
        (
            {"SERVICES": "values", "HOST": "0.0.0.0", "REDIS_URL": "redis://192.0.2.1/0"},
            "password in REDIS_URL is not set",
        ),
        (
            {"SERVICES": "messages", "MESSAGES_ADMIN_EMAIL": "a@example.com", "MESSAGES_ADMIN_PASSWORD": "changeme123"},
            "MESSAGES_ADMIN_PASSWORD: this password is a common one",
        ),
    ],
)
def test_a_replica_ends_with_a_sentence(env: dict[str, str], says: str) -> None:
    """Status 78: starting it again does not help."""
    base = {"REDIS_URL": "redis://127.0.0.1:1/0", "PORT": "0", "PRIVATE_PORT": "0", "LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "quart_app"]
    ended = subprocess.run(
        command, check=False, env={**os.environ, **base, **env}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == EXIT_SETUP
    assert says in ended.stderr and "Traceback" not in ended.stderr and "changeme123" not in ended.stderr
