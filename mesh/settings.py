"""The mesh's settings, read from the environment once. A default states its trade."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

#: A folder of files named like the settings in lower case (`redis_password`), as containers mount secrets.
SECRETS_DIR = os.environ.get("SECRETS_DIR", "/run/secrets")


def settings_config(prefix: str) -> SettingsConfigDict:
    """How every settings class of this project reads the environment: names in upper case, secrets from files too."""
    return SettingsConfigDict(
        env_prefix=prefix,
        secrets_dir=SECRETS_DIR if Path(SECRETS_DIR).is_dir() else None,
        env_ignore_empty=True,
        # By the name of the field, too; what is no field is a mistake of whoever says it.
        populate_by_name=True,
        extra="forbid",
        # An error must not repeat an address that has a password in it.
        hide_input_in_errors=True,
        frozen=True,
    )


class RedisSettings(BaseSettings):
    """Where the one Redis is, and who we are before we have a lease."""

    model_config = settings_config("REDIS_")

    url: SecretStr | None = Field(None, description="redis:// or rediss:// address; overrides host to db")
    host: str = "localhost"
    port: int = Field(6379, ge=1, le=65535)
    username: str = "default"
    password: SecretStr | None = None
    db: int = Field(0, ge=0, description="the database of the shared keys")
    sentinels: str = Field("", description="host:port,host:port: ask these for the master instead")
    sentinel_master: str = Field("mymaster", description="the name the sentinels know it by")
    connect_timeout_ms: int = Field(1000, ge=50)
    timeout_ms: int = Field(1500, ge=50, description="longest wait for an answer; well below the lease")
    wait_replicas: int = Field(0, ge=0, description="copies a commit waits for (WAIT) before it counts; 0: none")
    wait_timeout_ms: int = Field(1000, ge=1, description="longest wait for those copies")


class Isolation(StrEnum):
    """Who keeps replicas out of each other's databases."""

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

    @field_validator("class_")
    @classmethod
    def _one_of_the_classes(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or not value.isalpha() or not value.isupper()):
            raise ValueError("a class is one capital letter, A to D")
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
