"""The settings are checked when the process starts, not when somebody sends a message."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mesh.settings import explain
from quart_app.messages.settings import MessageSettings
from quart_app.providers import environment


def test_the_providers_of_a_local_mesh_are_the_default() -> None:
    """The bound of a delivery covers both providers at their slowest."""
    settings = MessageSettings()
    assert {"FREE_PROVIDER_URL": settings.free_url, "PAID_PROVIDER_URL": settings.paid_url} == environment()
    assert settings.work_ms > settings.probe_wait_ms + 2 * settings.provider_timeout_ms


@pytest.mark.parametrize("url", ["", "nowhere", "ftp://x/", "http://", "http://[", "http://x:99999/"])
def test_an_invalid_url_stops_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo is found before the first message."""
    monkeypatch.setenv("PAID_PROVIDER_URL", url or " ")
    with pytest.raises(ValidationError):
        MessageSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FREE_LIMIT", "0"),
        ("FREE_BLOCK_SECONDS", "0"),
        ("HOLD_MS", "1"),
        ("CONNECT_TRIES", "0"),
        ("JWT_SECRET", "short"),
    ],
)
def test_numbers_that_cannot_work_stop_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting."""
    monkeypatch.setenv(f"MESSAGES_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        MessageSettings()


@pytest.mark.parametrize(
    "password", ["short", "changeme123", "Password1!", "boss@corp.example", "boss2026", "11111111"]
)
def test_a_weak_password_of_the_administrator_stops_the_start(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting and the reason and does not repeat the password."""
    monkeypatch.setenv("MESSAGES_ADMIN_EMAIL", "boss@corp.example")
    monkeypatch.setenv("MESSAGES_ADMIN_PASSWORD", password)
    with pytest.raises(ValidationError) as caught:
        MessageSettings()
    said = explain(caught.value)
    assert said.startswith(("MESSAGES_ADMIN_PASSWORD: a password ", "MESSAGES_ADMIN_PASSWORD: this password "))
    assert password not in str(caught.value)


def test_the_administrators_address_is_brought_into_its_normal_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that could never log in stops the start."""
    monkeypatch.setenv("MESSAGES_ADMIN_EMAIL", " Boss@xn--bcher-kva.example")
    assert MessageSettings().admin_email == "boss@bücher.example"
    monkeypatch.setenv("MESSAGES_ADMIN_EMAIL", "boss")
    with pytest.raises(ValidationError, match="admin_email"):
        MessageSettings()
