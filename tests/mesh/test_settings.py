"""Settings come from the environment, secrets from files too; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from mesh import Isolation, MeshSettings, RedisSettings
from mesh.settings import explain


def test_the_names_of_the_task_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are REDIS_HOST, REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD and REDIS_DB."""
    for name, value in {"HOST": "redis", "PORT": "7000", "USERNAME": "u", "PASSWORD": "p", "DB": "2"}.items():
        monkeypatch.setenv(f"REDIS_{name}", value)
    redis = MeshSettings().redis
    assert (redis.host, redis.port, redis.username, redis.db) == ("redis", 7000, "u", 2)
    assert redis.password is not None and redis.password.get_secret_value() == "p"
    assert "p" not in repr(redis.password)


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    """Containers mount such files: each is named like the setting, in lower case."""
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
        ("MESH_CLASS", "E"),
        ("MESH_CLASSES", "ABE"),
        ("MESH_CLASSES", "ABA"),
        ("MESH_ISOLATION", "none"),
        ("MESH_CLASS_POLICY", "best"),
        ("MESH_LEASE_TTL_MS", "0"),
        ("MESH_DATABASES", "17"),
        ("MESH_DATABASES", "0"),
        ("MESH_MAX_DELIVERIES", "none"),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Settings that do not fit are refused before anything else happens."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        MeshSettings()


#: By setting: the least and the most that it may be.
BOUNDS: list[tuple[type[RedisSettings | MeshSettings], str, float, float | None]] = [
    (RedisSettings, "port", 1, 65_535),
    (RedisSettings, "db", 0, None),
    (RedisSettings, "connect_timeout_ms", 50, None),
    (RedisSettings, "timeout_ms", 50, None),
    (RedisSettings, "wait_replicas", 0, None),
    (RedisSettings, "wait_timeout_ms", 1, None),
    (MeshSettings, "lease_ttl_ms", 500, None),
    (MeshSettings, "claim_idle_ms", 200, None),
    (MeshSettings, "deadline_ms", 100, None),
    (MeshSettings, "max_deliveries", 1, None),
    (MeshSettings, "concurrency", 1, None),
    (MeshSettings, "memory_reserve", 0.01, 0.5),
    (MeshSettings, "stream_bound", 1, None),
    (MeshSettings, "later_bound", 1, None),
    (MeshSettings, "databases", 1, 16),
    (MeshSettings, "missing_ms", 0, None),
]


@pytest.mark.parametrize(("settings", "name", "least", "most"), BOUNDS, ids=[name for _, name, *_ in BOUNDS])
def test_a_number_is_taken_up_to_its_bounds(
    settings: type[RedisSettings | MeshSettings], name: str, least: float, most: float | None
) -> None:
    """The next number beyond a bound is refused."""
    step = 0.001 if isinstance(least, float) else 1
    for bound, beyond in ((least, least - step), (most, None if most is None else most + step)):
        if bound is not None:
            assert getattr(settings(**{name: bound}), name) == bound
            with pytest.raises(ValidationError, match=name):
                settings(**{name: beyond})


def test_every_number_has_its_bounds_here() -> None:
    """A setting that is added gets its test, too."""
    numbers = {
        (kind, name)
        for kind in (RedisSettings, MeshSettings)
        for name, field in kind.model_fields.items()
        if field.annotation in (int, float)
    }
    assert numbers == {(kind, name) for kind, name, *_ in BOUNDS}


def test_a_class_is_one_of_those_there_are() -> None:
    """No request could reach another."""
    assert MeshSettings(classes="BC", class_="C").class_ == "C"
    with pytest.raises(ValidationError, match="one of MESH_CLASSES"):
        MeshSettings(classes="BC", class_="A")


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://user:p%40ss@redis:7000/3",
        "redis://[::1]:7000",
        "rediss://redis/2?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem",
    ],
)
def test_an_address_names_server_user_and_database(url: str) -> None:
    """An address also names what TLS needs."""
    assert RedisSettings(url=SecretStr(url)).url is not None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:6379", "must begin with"),
        ("redis:6379", "must begin with"),
        ("unix:///run/redis.sock", "must begin with"),
        ("redis://redis/first", "number of a database"),
        ("redis://redis:0", "the port"),
        ("redis://redis:70000", "the port"),
        ("redis://user:secret-word", "the port"),
        ("redis://redis/0?db=3", "remove db"),
        ("redis://redis?decode_responses=false", "remove decode_responses"),
        ("redis://redis?ssl_cert_reqs=none", "cannot use"),
        ("rediss://redis?ssl_nothing=1", "cannot use"),
        ("rediss://redis?ssl_cert_reqs=perhaps", "cannot use"),
    ],
)
def test_an_address_that_would_fail_later_is_refused_at_once(url: str, why: str) -> None:
    """redis-py would let options win over what the mesh relies on; and no error repeats a password."""
    with pytest.raises(ValidationError, match=why) as caught:
        RedisSettings(url=SecretStr(url))
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("sentinels", ["one", "one:", ":26379", "one:26379,", "one:26379,two:port"])
def test_sentinels_are_hosts_with_ports(sentinels: str) -> None:
    """An address that cannot be read is refused before anything connects."""
    assert RedisSettings(sentinels="one:26379, two:26380").sentinels
    with pytest.raises(ValidationError, match="host:port"):
        RedisSettings(sentinels=sentinels)


def test_what_is_wrong_is_told_by_the_names_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line has all mistakes, in every class of settings."""
    monkeypatch.setenv("MESH_CLASS", "E")
    monkeypatch.setenv("MESH_DATABASES", "17")
    with pytest.raises(ValidationError) as caught:
        MeshSettings()
    assert explain(caught.value).split("; ") == [
        "MESH_DATABASES: Input should be less than or equal to 16",
        "MESH_CLASS: the class must be one of MESH_CLASSES",
    ]
    monkeypatch.setenv("REDIS_URL", "redis:8000")
    with pytest.raises(ValidationError) as caught:
        RedisSettings()
    assert explain(caught.value) == "REDIS_URL: the address must begin with redis:// or rediss://"


def test_times_that_follow_from_others_keep_their_proportions() -> None:
    """Several renewals fit in a lease, and work is kept alive several times in the claim idle time."""
    for ttl_ms in (500, 3000, 60_000):
        assert 4 * MeshSettings(lease_ttl_ms=ttl_ms).renew_interval_ms <= ttl_ms
    for idle_ms in (200, 2000, 60_000):
        assert 4 * MeshSettings(claim_idle_ms=idle_ms).keep_alive_ms <= idle_ms
    assert MeshSettings(claim_idle_ms=60_000).keep_alive_ms <= 500, "so that who is not waited for stops soon"


def test_a_setting_may_be_given_by_the_name_of_its_field_and_no_other() -> None:
    """Code that embeds a replica learns at once that it misspelt a setting."""
    assert MeshSettings(class_="B").class_ == "B"
    with pytest.raises(ValidationError, match="clas"):
        MeshSettings(clas="B")  # type: ignore[call-arg]
