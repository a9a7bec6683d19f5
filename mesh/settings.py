"""The mesh's settings, read from the environment once. A default states its trade."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

#: A folder of files named like the settings in lower case (`redis_password`), as containers mount secrets.
SECRETS_DIR = os.environ.get("SECRETS_DIR", "/run/secrets")


def settings_config(prefix: str) -> SettingsConfigDict:
    """How every settings class of this project reads the environment: names in upper case, secrets from files too."""
    return SettingsConfigDict(
        env_prefix=prefix,
        secrets_dir=SECRETS_DIR if _is_there(SECRETS_DIR) else None,
        env_ignore_empty=True,
        # The end of a line, or of a file written on Windows, belongs to no value.
        str_strip_whitespace=True,
        # Code may also use the names of the fields; an unknown name is an error.
        populate_by_name=True,
        extra="forbid",
        # An error must not repeat an address that has a password in it.
        hide_input_in_errors=True,
        frozen=True,
    )


def _is_there(folder: str) -> bool:
    """Whether the folder exists. One that cannot be looked at does: reading a secret in it then fails with its name."""
    try:
        return Path(folder).is_dir()
    except PermissionError:
        return True


def explain(error: ValidationError) -> str:
    """Which settings do not fit, by the names they have in the environment, and why."""
    prefixes = {kind.__name__: kind.model_config.get("env_prefix", "") for kind in BaseSettings.__subclasses__()}
    prefix = prefixes.get(error.title, "")
    wrong = []
    for one in error.errors():
        name = ".".join(map(str, one["loc"]))
        # A field with a name of its own in the environment is told by it.
        wrong.append(f"{name if name.isupper() else prefix + name.upper()}: {one['msg'].removeprefix('Value error, ')}")
    return "; ".join(wrong)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _database_of(url: str) -> int | None:
    """The database that an address ends with, if it does. Raises ValueError where that is no number."""
    path = urlsplit(url).path.strip("/")
    number = _number(path)
    if path and number is None:
        raise ValueError("the address ends with the number of a database, or nothing")
    return number


def _sentinels(text: str) -> list[tuple[str, int]]:
    """Hosts and ports. Raises ValueError where they are none."""
    found = []
    for address in text.split(",") if text else ():
        host, _, port = address.strip().rpartition(":")
        number = _number(port)
        if not host or number is None:
            raise ValueError("sentinels are host:port, separated by commas")
        found.append((host, number))
    return found


def _check_address(url: str) -> None:
    """Raises ValueError for what is no address of a server, or says what is ours to say."""
    if not url.startswith(("redis://", "rediss://")):
        raise ValueError("the address begins with redis:// or rediss://")
    _database_of(url)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        # Its sentence repeats what stands there, which is the password where the host was forgotten.
        port = 0
    if port == 0:
        raise ValueError("the port of the address is a number from 1 to 65535")
    # redis-py lets what an address says win, and most of what it could say is for us to say.
    for option in parse_qs(parts.query, keep_blank_values=True):
        if not option.startswith("ssl_"):
            raise ValueError(f"an address has options for TLS (ssl_ca_certs and others), none like {option}")
    try:
        pool = ConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, RedisError) as error:
        raise ValueError(f"redis-py cannot use the address: {error}") from error


class RedisSettings(BaseSettings):
    """Where the one Redis is, and who we are before we have a lease."""

    model_config = settings_config("REDIS_")

    url: SecretStr | None = Field(
        None,
        description="redis://user:password@host:port/database, or rediss:// for TLS (?ssl_ca_certs=… and its like); "
        "overrides host to db; with sentinels its host and port say nothing, and TLS is for them, too",
    )
    host: str = "localhost"
    port: int = Field(6379, ge=1, le=65535)
    username: str = "default"
    password: SecretStr | None = None
    db: int = Field(0, ge=0, description="the database of the shared keys")
    sentinels: str = Field("", description="host:port,host:port: ask these for the master instead")
    sentinel_master: str = Field("mymaster", description="the name the sentinels know it by")
    sentinel_username: str = "default"
    sentinel_password: SecretStr | None = Field(None, description="where the sentinels ask for one")
    connect_timeout_ms: int = Field(1000, ge=50)
    timeout_ms: int = Field(1500, ge=50, description="longest wait for an answer; well below the lease")
    wait_replicas: int = Field(0, ge=0, description="copies a commit waits for (WAIT) before it counts; 0: none")
    wait_timeout_ms: int = Field(1000, ge=1, description="longest wait for those copies")

    @field_validator("url")
    @classmethod
    def _readable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_address(value.get_secret_value())
        return value

    @field_validator("sentinels")
    @classmethod
    def _hosts_and_ports(cls, value: str) -> str:
        _sentinels(value)
        return value

    @property
    def bus(self) -> int:
        """The number of the bus database."""
        named = None if self.url is None else _database_of(self.url.get_secret_value())
        return self.db if named is None else named

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel."""
        return _sentinels(self.sentinels)


class Isolation(StrEnum):
    """What keeps replicas out of each other's databases: the server, or key names alone."""

    ACL = "acl"
    PREFIX = "prefix"


class MeshSettings(BaseSettings):
    """How this replica behaves in the mesh."""

    model_config = settings_config("MESH_")

    redis: RedisSettings = Field(default_factory=RedisSettings)

    lease_ttl_ms: int = Field(
        3000, ge=500, description="a dead replica's database is free after this; shorter bears less stalling"
    )
    claim_idle_ms: int = Field(
        2000, ge=200, description="work not kept alive this long is taken over; shorter takes over sooner"
    )
    deadline_ms: int = Field(5000, ge=100, description="a request's time unless it asks for another")
    max_deliveries: int = Field(3, ge=1, description="tries before a request becomes a dead letter")
    concurrency: int = Field(256, ge=1, description="requests of its class a replica works on at once")
    stream_bound: int = Field(10_000, ge=1, description="requests that may wait on one stream; beyond it: busy")
    databases: int = Field(16, ge=1, le=16, description="databases that may be leased")
    isolation: Isolation = Field(
        Isolation.ACL, description="acl: the server enforces it; prefix: key names alone, for hosted servers"
    )
    classes: str = Field("ABCD", description="the classes there are, one letter each")
    class_: str | None = Field(
        None, validation_alias="MESH_CLASS", description="class for a database that has none yet"
    )
    class_policy: Literal["rarest", "random"] = Field(
        "rarest", description="how a first class is chosen where MESH_CLASS does not say"
    )

    @field_validator("classes")
    @classmethod
    def _letters(cls, value: str) -> str:
        if not value or set(value) - set("ABCD") or len(set(value)) < len(value):
            raise ValueError("the classes are some of A, B, C and D, each named once")
        return value

    @field_validator("class_")
    @classmethod
    def _one_of_the_classes(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in set(info.data.get("classes", "ABCD")):
            raise ValueError("the class is none of the classes there are")
        return value

    @property
    def renew_interval_ms(self) -> int:
        """Six renewals fit in a lease, so that five may fail."""
        return max(50, self.lease_ttl_ms // 6)

    @property
    def keep_alive_ms(self) -> int:
        """Between two looks at the work in progress: four fit in the claim idle time, and a cancelled
        request frees its worker within a quarter of a second."""
        return min(250, self.claim_idle_ms // 4)
