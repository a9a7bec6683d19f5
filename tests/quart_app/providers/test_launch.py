"""The command lines of the two providers, and the environment of the replicas."""

from __future__ import annotations

from quart_app.providers import commands, environment


def test_the_environment_names_the_ports_of_the_commands() -> None:
    """A replica finds the providers that a local mesh starts."""
    told = environment(free_port=1234, paid_port=5678)
    assert told == {"FREE_PROVIDER_URL": "http://127.0.0.1:1234/", "PAID_PROVIDER_URL": "http://127.0.0.1:5678/"}
    assert commands(1234, 5678)["free"][-1] == "1234"
