"""Fixtures: each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from quart_app.movements.address import async_url
from quart_app.movements.database import MovementDatabase
from quart_app.movements.store import MovementStore
from tests.support import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL server for this run."""
    with postgres.cluster() as cluster:
        yield cluster.address


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for one test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'movements.db'}"
    address: str = request.getfixturevalue("postgres_server")
    await postgres.empty(address)
    return address


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[MovementDatabase]:
    """A database with its tables."""
    database = MovementDatabase(async_url(database_url))
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def store(database: MovementDatabase) -> MovementStore:
    return MovementStore(database)
