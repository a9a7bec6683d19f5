"""Servers of a measurement."""

from __future__ import annotations

import pytest

from bench.servers import DURABILITY, accepts, valkey


@pytest.mark.parametrize("durability", DURABILITY)
def test_a_turn_has_an_empty_server_of_its_own(durability: str) -> None:
    """A turn sees nothing of the turn before, and has the durability that was asked for."""
    with valkey(durability) as server:
        client = server.redis()
        assert client.dbsize() == 0
        client.set("key", "value")
        settings = client.config_get("append*")
        assert settings["appendonly"] == ("no" if durability == "off" else "yes")
        if durability != "off":
            assert settings["appendfsync"] == durability
    assert not accepts(server.port)
