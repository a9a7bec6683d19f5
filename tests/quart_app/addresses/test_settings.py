"""The settings are checked when the process starts, not when somebody asks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quart_app.addresses.settings import AddressSettings


def test_the_environment_names_are_those_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENDPOINT_PREFIX and DEFAULT_REGION."""
    monkeypatch.setenv("ENDPOINT_PREFIX", "/phones/")
    monkeypatch.setenv("DEFAULT_REGION", "ru")
    settings = AddressSettings()
    assert (settings.endpoint_prefix, settings.default_region) == ("/phones", "RU")


def test_defaults() -> None:
    """No region: a number without its country is not guessed."""
    settings = AddressSettings()
    assert (settings.endpoint_prefix, settings.default_region) == ("/addr_by_phone", "")


@pytest.mark.parametrize("wrong", [{"endpoint_prefix": "/"}, {"endpoint_prefix": " "}, {"default_region": "Russia"}])
def test_what_cannot_work_is_refused(wrong: dict[str, str]) -> None:
    """A typo stops the start."""
    with pytest.raises(ValidationError):
        AddressSettings(**wrong)
