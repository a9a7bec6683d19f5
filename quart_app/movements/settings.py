"""The settings of the movements service, read from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings
from sqlalchemy import URL

from mesh import settings_config
from quart_app.movements.address import DRIVERS, async_url

#: The most rows in one INSERT. Both databases accept about 32,000 values in a statement, and a row has nine values.
MOST_ROWS = 3000


class MovementSettings(BaseSettings):
    """Where events come from and where movements are stored."""

    model_config = settings_config("")

    database_url: SecretStr | None = Field(
        None, description="postgresql://… or sqlite:///…; empty: the file at MOVEMENTS_DB_PATH"
    )
    movements_db_path: Path = Field(
        Path("data/movements.db"), description="an SQLite file that all replicas of this machine share"
    )
    database_timeout_ms: int = Field(
        5000, ge=100, description="longest wait for the database: a connection, a statement, a lock"
    )
    movement_cache_size: int = Field(
        10_000, ge=0, description="movements kept in RAM; 0: none. More save reads of the database"
    )
    movement_cache_expiration: float = Field(
        5.0, gt=0, description="how many seconds a cached movement may be behind the writes of another replica"
    )
    movements_stream: str = Field("events:movements", pattern=r"^events:.+", description="the stream of the events")
    movements_batch: int = Field(
        500, ge=1, le=MOST_ROWS, description="events per commit; more are faster, with fewer a crash repeats less work"
    )
    # A consumer keeps its events alive four times in this span, so a shorter span costs more commands.
    movements_claim_idle_ms: int = Field(
        5000, ge=200, description="after this time another replica takes over the events of a dead replica"
    )

    @field_validator("database_url")
    @classmethod
    def _url_if_readable(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            async_url(url.get_secret_value())
        return url

    @property
    def url(self) -> URL:
        """The address of the database, with the driver that we use."""
        if self.database_url is not None:
            return async_url(self.database_url.get_secret_value())
        return URL.create(DRIVERS["sqlite"], database=str(self.movements_db_path))
