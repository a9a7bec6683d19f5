"""The settings of the mesh, read from the environment once.

If a default is a compromise, its description names both sides.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from mesh.errors import SetupError, UsageError

S = TypeVar("S", bound=BaseSettings)

#: A folder in which a container finds its secrets. Each file is named like a setting in lower case (`redis_password`).
SECRETS_DIR = os.environ.get("SECRETS_DIR", "/run/secrets")


def settings_config(prefix: str) -> SettingsConfigDict:
    """Return how a settings class reads the environment. Names are in upper case; secrets can also be in files."""
    return SettingsConfigDict(
        env_prefix=prefix,
        secrets_dir=SECRETS_DIR if _may_exist(SECRETS_DIR) else None,
        env_ignore_empty=True,
        # The end of a line (CRLF in a file from Windows) is not part of a value.
        str_strip_whitespace=True,
        # Code may also use the names of the fields. An unknown name is an error.
        populate_by_name=True,
        extra="forbid",
        # An error must not repeat an address that has a password in it.
        hide_input_in_errors=True,
        frozen=True,
    )


def _may_exist(folder: str) -> bool:
    """Return whether a folder exists. Also True if that cannot be found out: reading it then raises an error later."""
    try:
        return Path(folder).is_dir()
    except PermissionError:
        return True


def explain(error: ValidationError) -> str:
    """Return a text that says which settings are invalid, by their names in the environment, and why."""
    # pydantic's error has the class's name as its title, and the class has the prefix.
    prefixes = {
        settings_class.__name__: settings_class.model_config.get("env_prefix", "")
        for settings_class in BaseSettings.__subclasses__()
    }
    prefix = prefixes.get(error.title, "")
    complaints = []
    for details in error.errors():
        name = ".".join(map(str, details["loc"]))
        # pydantic reports a field with an alias, such as MESH_CLASS, by this name, which already has the prefix.
        complaints.append(
            f"{name if name.isupper() else prefix + name.upper()}: {details['msg'].removeprefix('Value error, ')}"
        )
    return "; ".join(complaints)


def without_environment(settings_class: type[S], **chosen: Any) -> S:
    """Return settings with the `chosen` fields, and the defaults of all others. No environment variable is read.

    Raises pydantic's ValidationError.
    """
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in settings_class.model_fields.items()
        if name not in chosen  # the default of a field may read the environment
    }
    return settings_class(**defaults, **chosen)


def given_or_environment(settings: MeshSettings | None, url: str | None = None) -> MeshSettings:
    """Return the given settings; if there are none, those of the environment, with Redis at `url` if it is given.

    Raises SetupError, UsageError.
    """
    if settings is not None and not isinstance(settings, MeshSettings):
        raise UsageError(f"settings are MeshSettings(...), not {settings!r:.100}")
    if settings is not None:
        return settings
    try:
        return MeshSettings() if url is None else MeshSettings(redis=RedisSettings(url=SecretStr(url)))
    except ValidationError as error:
        raise SetupError(explain(error)) from error


def _number_or_none(text: str) -> int | None:
    """Return the number that a text of digits says; None for any other text, such as "", "-1" or "٣"."""
    return int(text) if text.isascii() and text.isdigit() else None


def _database_of(url: str) -> int | None:
    """Return the database at the end of an address; None if it names none. Raises ValueError if it is not a number."""
    path = urlsplit(url).path.strip("/")
    number = _number_or_none(path)
    if path and number is None:
        raise ValueError("the address must end with the number of a database, such as /0, or directly after the port")
    return number


def _parse_sentinels(text: str) -> list[tuple[str, int]]:
    """Return hosts and ports. Raises ValueError when the text is not a list of host:port."""
    addresses = []
    for address in text.split(",") if text else ():
        host, _, port = address.strip().rpartition(":")
        port_number = _number_or_none(port)
        if not host or port_number is None:
            raise ValueError("write sentinels as host:port, separated by commas")
        addresses.append((host, port_number))
    return addresses


def _check_address(url: str) -> None:
    """Raise ValueError for an invalid address, or for one with options that the mesh sets itself."""
    if not url.startswith(("redis://", "rediss://")):
        raise ValueError("the address must begin with redis:// or rediss://")
    _database_of(url)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        # Python's message would repeat the text after the last colon. If the host is missing, this is the password.
        # 0 stands for no valid port, and None for the default port.
        port = 0
    if port == 0:
        raise ValueError("the port of the address must be a number from 1 to 65535")
    # In redis-py, options of the address override those that the mesh sets, and the mesh needs its own.
    for option in parse_qs(parts.query, keep_blank_values=True):
        if not option.startswith("ssl_"):
            raise ValueError(f"the address may only have options for TLS, such as ssl_ca_certs; remove {option}")
    try:
        # This makes a connection without opening it: redis-py then checks the options of the address.
        pool = ConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, RedisError) as error:
        raise ValueError(f"redis-py cannot use the address: {error}") from error


class RedisSettings(BaseSettings):
    """The address of Redis, and the Redis user as which a replica logs in before it has a lease."""

    model_config = settings_config("REDIS_")

    url: SecretStr | None = Field(
        None,
        description="redis://user:password@host:port/database, or rediss:// for TLS (with options such as "
        "?ssl_ca_certs=…). REDIS_HOST and REDIS_PORT are then ignored; a user, password or database in the URL "
        "overrides the setting for it. With sentinels, the host and port of the URL are ignored, and TLS applies to "
        "the sentinels too",
    )
    host: str = "localhost"
    port: int = Field(6379, ge=1, le=65535)
    username: str = "default"
    password: SecretStr | None = None
    db: int = Field(0, ge=0, description="the database of the shared keys")
    sentinels: str = Field("", description="host:port,host:port of sentinels, which name the master")
    sentinel_master: str = Field("mymaster", description="the name of the master at the sentinels")
    sentinel_username: str = "default"
    sentinel_password: SecretStr | None = Field(None, description="the password of the sentinels, if they have one")
    connect_timeout_ms: int = Field(
        1000,
        ge=50,
        description="longest wait for a connection; a longer one suits a distant server, and delays the next attempt",
    )
    timeout_ms: int = Field(
        1500,
        ge=50,
        description="longest wait for an answer; keep it well below MESH_LEASE_TTL_MS and MESH_CLAIM_IDLE_MS, so that "
        "a command without an answer can be repeated in time",
    )
    wait_replicas: int = Field(0, ge=0, description="copies of Redis that must confirm a commit (WAIT); 0: none")
    wait_timeout_ms: int = Field(
        1000, ge=1, description="longest wait for the confirmations of the copies that REDIS_WAIT_REPLICAS asks for"
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_address(value.get_secret_value())
        return value

    @field_validator("sentinels")
    @classmethod
    def _check_sentinels(cls, value: str) -> str:
        _parse_sentinels(value)
        return value

    @property
    def bus(self) -> int:
        """The number of the bus database."""
        database_in_url = None if self.url is None else _database_of(self.url.get_secret_value())
        return self.db if database_in_url is None else database_in_url

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel."""
        return _parse_sentinels(self.sentinels)


class Isolation(StrEnum):
    """What keeps a replica out of the databases of others: the server (ACL), or only the names of keys (PREFIX)."""

    ACL = "acl"
    PREFIX = "prefix"


class MeshSettings(BaseSettings):
    """How this replica behaves in the mesh."""

    model_config = settings_config("MESH_")

    redis: RedisSettings = Field(default_factory=RedisSettings)

    name: str = Field(
        "mesh",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="the mesh claims its Redis by this name; a replica with another name or REDIS_DB is refused",
    )
    # No validator compares this setting, the next one and REDIS_TIMEOUT_MS: see the description of REDIS_TIMEOUT_MS.
    lease_ttl_ms: int = Field(
        3000,
        ge=500,
        description="a dead replica's database is free after this; a replica that stalls for as long loses its lease",
    )
    claim_idle_ms: int = Field(
        2000, ge=200, description="another replica takes over work that was not kept alive for this long"
    )
    deadline_ms: int = Field(5000, ge=100, description="the deadline of a request that does not name one")
    max_deliveries: int = Field(3, ge=1, description="deliveries before a request becomes a dead letter")
    concurrency: int = Field(
        256,
        ge=1,
        description="requests of its class that a replica handles at the same time; more take more memory, and fewer "
        "leave a replica idle while its handlers wait",
    )
    memory_reserve: float = Field(
        0.1,
        ge=0.01,
        le=0.5,
        description="share of Redis's maxmemory that new data may not use; reads, logins and settlement may. A larger "
        "share refuses new data sooner; with a smaller one, accepted work may find no room",
    )
    stream_bound: int = Field(
        10_000,
        ge=1,
        description="requests that may wait on one stream; more are refused. With a larger bound, requests wait longer "
        "and take more memory of Redis; a smaller one refuses short bursts",
    )
    later_bound: int = Field(
        100_000,
        ge=1,
        description="requests that may wait for their time; more are refused. With a larger bound, they may take more "
        "memory of Redis; a smaller one refuses requests sooner",
    )
    databases: int = Field(16, ge=1, le=16, description="number of databases that replicas may lease")
    missing_ms: int = Field(
        30_000,
        ge=0,
        description="how long the holder of a database is expected back: reads that need its data, and requests to its "
        "class, get 503 meanwhile; afterwards reads leave the database out and say so",
    )
    isolation: Isolation = Field(
        Isolation.ACL, description="acl: the server enforces isolation; prefix: only key names do, for hosted servers"
    )
    classes: str = Field("ABCD", description="the letters of the classes")
    class_: str | None = Field(
        None,
        validation_alias="MESH_CLASS",
        description="the class that this replica gives to a database without a class; empty: the mesh chooses",
    )
    class_policy: Literal["rarest", "random"] = Field(
        "rarest", description="how the mesh chooses a first class when MESH_CLASS is empty"
    )

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: str) -> str:
        if not value or set(value) - set("ABCD") or len(set(value)) < len(value):
            raise ValueError("write some of the letters A, B, C and D, each once")
        return value

    @field_validator("class_")
    @classmethod
    def _check_class(cls, value: str | None, info: ValidationInfo) -> str | None:
        # `info.data` lacks the classes if they are invalid. Then their own error is enough.
        if value is not None and value not in set(info.data.get("classes", "ABCD")):
            raise ValueError("the class must be one of MESH_CLASSES")
        return value

    @property
    def renew_interval_ms(self) -> int:
        """The time between two renewals. Six fit in the ttl, so several may fail before the lease ends.

        After a renewal that failed, the next one comes sooner.
        """
        return self.lease_ttl_ms // 6

    @property
    def keep_alive_ms(self) -> int:
        """The pause before work in progress is kept alive again.

        At least four pauses fit in `claim_idle_ms`. Each time, Redis also tells which of the requests were cancelled.
        So a cancelled request frees its worker within 250 ms.
        """
        return min(250, self.claim_idle_ms // 4)
