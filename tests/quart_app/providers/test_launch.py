"""How the two providers are started beside a mesh."""

from __future__ import annotations

from quart_app.providers import commands, environment


def test_the_replicas_are_told_where_the_providers_are() -> None:
    """Commands and environment name the same ports."""
    told = environment(free_port=1234, paid_port=5678)
    assert told == {"FREE_PROVIDER_URL": "http://127.0.0.1:1234/", "PAID_PROVIDER_URL": "http://127.0.0.1:5678/"}
    assert commands(1234, 5678)["free"][-1] == "1234"
