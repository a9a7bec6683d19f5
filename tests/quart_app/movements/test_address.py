"""DATABASE_URL: each option works or is refused with a sentence that does not repeat the password."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from quart_app.movements.address import async_url, dsn_of, read_connect_timeout_s
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
def test_an_address_is_read_in_its_usual_spellings(monkeypatch: pytest.MonkeyPatch, given: str, taken: str) -> None:
    """The service chooses the driver."""
    monkeypatch.setenv("DATABASE_URL", given)
    assert MovementSettings().url.render_as_string(hide_password=False) == taken


@pytest.mark.parametrize(
    ("given", "dsn"),
    [
        ("sslmode=require", "sslmode=require"),
        ("sslmode=verify-full&application_name=shop", "application_name=shop&sslmode=verify-full"),
        ("options=-c%20statement_timeout%3D9000", "options=-c+statement_timeout%3D9000"),
        ("connect_timeout=10", ""),
        ("channel_binding=prefer&gssencmode=disable&keepalives=1&keepalives_idle=30&tcp_user_timeout=1", ""),
        ("client_encoding=utf8&sslsni=1&sslcompression=0&load_balance_hosts=disable", ""),
        ("fallback_application_name=shop", "application_name=shop"),
        ("fallback_application_name=shop&application_name=mesh", "application_name=mesh"),
        ("host=one,two&port=5432,5433&target_session_attrs=read-write",
         "host=one%2Ctwo&port=5432%2C5433&target_session_attrs=read-write"),
    ],
)  # fmt: skip
def test_asyncpg_gets_the_options_that_it_reads(given: str, dsn: str) -> None:
    """The others have no effect, or this service handles them."""
    url = async_url(f"postgresql://mesh:p%40ss@db/shop?{given}")
    assert dsn_of(url) == f"postgresql://mesh:p%40ss@db/shop{'?' * bool(dsn)}{dsn}"


@pytest.mark.parametrize(("given", "seconds"), [("", 5), ("?connect_timeout=10", 10), ("?connect_timeout=0", 5)])
def test_connect_timeout_bounds_a_connect(given: str, seconds: float) -> None:
    """0 is "wait for ever" in libpq; here it is the default."""
    assert read_connect_timeout_s(async_url(f"postgresql://db/shop{given}"), 5) == seconds


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("mysql://root:secret-word@db/shop", "must begin with postgresql or sqlite"),
        ("secret-word@@", "cannot be read"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///a.db?mode=ro", "has the option mode"),
        ("postgresql:secret-word", "cannot be read"),
        ("postgresql://u:secret-word@one:1,two:2/db", r"several hosts.*\?host=one,two"),
        ("postgresql://u:secret-word@db/shop?sslmod=require", "unknown option sslmod"),
        ("postgresql://u:secret-word@db/shop?pgbouncer=true", "unknown option pgbouncer"),
        ("postgresql://u:secret-word@db/shop?sslmode=on", "sslmode=on; it must be one of"),
        ("postgresql://u:secret-word@db/shop?channel_binding=require", "channel_binding=require.*remove it"),
        ("postgresql://u:secret-word@db/shop?gssencmode=require", "gssencmode=require"),
        ("postgresql://u:secret-word@db/shop?connect_timeout=soon", "not a number of seconds"),
        ("postgresql://u:secret-word@db/shop?sslrootcert=/nowhere/ca.pem", "sslrootcert that does not exist"),
    ],
)
def test_an_address_that_cannot_work_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, given: str, says: str
) -> None:
    """The process ends at its start; no password is in the sentence."""
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(ValidationError, match=f"DATABASE_URL.*{says}") as caught:
        MovementSettings()
    assert "secret-word" not in str(caught.value)


def test_the_process_ends_with_78() -> None:
    """The process prints one sentence and no traceback."""
    env = {**os.environ, "DATABASE_URL": "postgresql://u:secret-word@db/shop?sslmod=require"}
    command = [sys.executable, "-m", "quart_app"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 78
    assert "unknown option sslmod" in told and "secret-word" not in told and "Traceback" not in told
