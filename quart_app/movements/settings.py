"""The settings of the movements. A default states its trade."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from mesh.settings import settings_config

#: The drivers we use, by the dialect that a URL names.
DRIVERS = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
#: In one INSERT; both databases take about 32 000 values, and a row has nine.
MOST_ROWS = 3000


class MovementSettings(BaseSettings):
    """Where movements come from and where they are kept."""

    model_config = settings_config("")

    database_url: SecretStr | None = Field(
        None, description="postgresql://… or sqlite:///…; without it the file at MOVEMENTS_DB_PATH"
    )
    movements_db_path: Path = Field(
        Path("data/movements.db"), description="an SQLite file that all replicas of this machine share"
    )
    database_timeout_ms: int = Field(
        5000, ge=100, description="longest wait for the database: a connection, a statement, a lock"
    )
    movement_cache_size: int = Field(10_000, ge=0, description="movements kept in RAM; 0: none")
    movement_cache_expiration: float = Field(
        5.0, gt=0, description="seconds a cached movement may be behind another replica's writes"
    )
    movements_stream: str = Field("events:movements", pattern=r"^events:.+", description="where events arrive")
    movements_batch: int = Field(
        500, ge=1, le=MOST_ROWS, description="events per commit; more is faster, and more is done again after a crash"
    )
    movements_claim_idle_ms: int = Field(5000, ge=200, description="a dead replica's events are taken over after this")

    @field_validator("database_url")
    @classmethod
    def _known(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            async_url(value.get_secret_value())
        return value

    @property
    def url(self) -> URL:
        """The database's address, with the driver we use."""
        if self.database_url is not None:
            return async_url(self.database_url.get_secret_value())
        return URL.create(DRIVERS["sqlite"], database=str(self.movements_db_path))


def async_url(text: str) -> URL:
    """Raises ValueError, without the password, where the address is none of ours."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("DATABASE_URL is no database address") from None
    driver = DRIVERS.get(url.drivername.partition("+")[0])
    if driver is None:
        raise ValueError(f"DATABASE_URL names {url.drivername}; there are postgresql and sqlite")
    if driver == DRIVERS["sqlite"] and url.database in {None, "", ":memory:"}:
        raise ValueError("DATABASE_URL must name a file: a database in memory is not shared")
    return url.set(drivername=driver)
