"""Where movements are kept, from the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quart_app.movements.settings import MovementSettings


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgresql://mesh:pw@db/shop", "postgresql+asyncpg://mesh:pw@db/shop"),
        ("postgres://mesh@db:5433/shop", "postgresql+asyncpg://mesh@db:5433/shop"),
        ("postgresql+psycopg2://db/shop", "postgresql+asyncpg://db/shop"),
        ("sqlite:////var/lib/m.db", "sqlite+aiosqlite:////var/lib/m.db"),
    ],
)
def test_an_address_is_taken_in_its_usual_spellings(monkeypatch: pytest.MonkeyPatch, given: str, taken: str) -> None:
    """The driver is ours to choose."""
    monkeypatch.setenv("DATABASE_URL", given)
    assert MovementSettings().url.render_as_string(hide_password=False) == taken


def test_without_an_address_it_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite on one machine, at a path of the settings."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("MOVEMENTS_DB_PATH", "/tmp/there/m.db")
    assert str(MovementSettings().url) == "sqlite+aiosqlite:////tmp/there/m.db"


@pytest.mark.parametrize(
    "given",
    ["mysql://root:secret-word@db/shop", "secret-word@@", "sqlite://", "sqlite:///:memory:", "postgresql:secret-word"],
)
def test_another_address_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A clear error at the start, with no password in it. A database in memory is not shared by replicas."""
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(ValidationError, match="DATABASE_URL") as caught:
        MovementSettings()
    assert "secret-word" not in str(caught.value)
