"""The application's settings, and the page that lists them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from quart_app.settings import AppSettings

ROOT = Path(__file__).parents[2]


def test_the_services_run_in_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces around the names do not count."""
    monkeypatch.setenv("SERVICES", " grades , values,")
    assert AppSettings().service_names == ["grades", "values"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SERVICES", "values,vaules", "no such service: vaules"),
        ("PORT", "65536", "PORT: Input should be less than or equal to 65535"),
        ("REDIS_URL", "redis://redis/first", "REDIS_URL: the address must end with the number of a database"),
        ("VALUES_CHUNK", "0", "VALUES_CHUNK: Input should be greater than or equal to 1"),
        ("MAX_BODY_BYTES", "0", "greater than or equal"),
        ("LOG_FORMAT", "xml", "json"),
    ],
)
def test_a_replica_does_not_start_with_settings_that_do_not_fit(name: str, value: str, says: str) -> None:
    """Exit status 78 and a sentence, at once: a new start would not help."""
    env = {"PATH": "", name: value}
    command = [sys.executable, "-m", "quart_app"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    told = done.stderr + done.stdout
    assert "the environment is not valid" in told and says in told
    assert "Traceback" not in told


def test_an_unknown_service_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name is not silently left out."""
    monkeypatch.setenv("SERVICES", "everything")
    with pytest.raises(ValidationError):
        AppSettings()


def test_the_page_of_settings_is_current() -> None:
    """It is written from the classes that read the settings."""
    command = [sys.executable, "-m", "docs.pages", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
