"""A wrong setting stops the process at its start."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quart_app.addresses.settings import AddressSettings


def test_the_environment_names_are_those_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task names ENDPOINT_PREFIX and DEFAULT_REGION."""
    monkeypatch.setenv("ENDPOINT_PREFIX", "/phones/")
    monkeypatch.setenv("DEFAULT_REGION", "ru")
    settings = AddressSettings()
    assert (settings.endpoint_prefix, settings.default_region) == ("/phones", "RU")


def test_defaults() -> None:
    """Without a region a number without its country code is refused."""
    settings = AddressSettings()
    assert (settings.endpoint_prefix, settings.default_region) == ("/addr_by_phone", "")


@pytest.mark.parametrize(
    "prefix",
    [
        "/",
        " ",
        "",
        "/adr/<int:x>",
        "/a b",
        "/a//c",
        "/a b//c",
        "/a?b",
        "/a#b",
        "/a%20b",
        "/../a",
        "/a/.",
        "/<x>",
        "a\\b",
    ],
)
def test_a_prefix_that_is_no_plain_path_is_refused(prefix: str) -> None:
    """Such characters mean something in a route, a query or a URL."""
    with pytest.raises(ValidationError, match="the prefix is a path"):
        AddressSettings(endpoint_prefix=prefix)


@pytest.mark.parametrize("prefix", ["/addr_by_phone", "where/is/", "/v1.2/a-b/c~d", "/адреса"])
def test_a_plain_path_is_accepted(prefix: str) -> None:
    """Slashes at either end do not matter."""
    assert AddressSettings(endpoint_prefix=prefix).endpoint_prefix == "/" + prefix.strip("/")


def test_an_unknown_region_is_refused() -> None:
    """The message shows the form of a region."""
    with pytest.raises(ValidationError, match="two letters"):
        AddressSettings(default_region="Russia")
