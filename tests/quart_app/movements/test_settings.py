"""The settings of the movements service."""

from __future__ import annotations

import pytest

from quart_app.movements.settings import MovementSettings


def test_without_an_address_the_database_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is an SQLite database at MOVEMENTS_DB_PATH."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("MOVEMENTS_DB_PATH", "/tmp/there/m.db")
    assert str(MovementSettings().url) == "sqlite+aiosqlite:////tmp/there/m.db"
