"""Whom a request comes from, and what each source may occupy."""

from __future__ import annotations

import pytest

from quart_app.http.clients import Occupancy, Proxies

#: (trusted, the peer, X-Forwarded-For, the client)
FORWARDED = [
    ("", "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
    ("10.0.0.0/8", "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
    ("10.0.0.0/8", "10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
    ("10.0.0.0/8", "10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
    ("10.0.0.0/8", "10.0.0.1", ["203.0.113.9", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
    ("10.0.0.0/8", "10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    ("10.0.0.0/8", "10.0.0.1", ["not an address"], "10.0.0.1"),
    ("10.0.0.0/8", "10.0.0.1", ["198.51.100.7,"], "10.0.0.1"),
    ("10.0.0.0/8", "10.0.0.1", [], "10.0.0.1"),
    ("10.0.0.0/8", "::ffff:10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
    ("192.0.2.0/24, ::1", "::1", ["198.51.100.7"], "198.51.100.7"),
    ("10.0.0.0/8", "", ["198.51.100.7"], ""),
]


@pytest.mark.parametrize(("trusted", "peer", "forwarded_for", "client"), FORWARDED)
def test_only_trusted_proxies_are_believed(trusted: str, peer: str, forwarded_for: list[str], client: str) -> None:
    """A client can write the header, too: what stands before the last address that a trusted proxy added is hearsay."""
    assert Proxies(trusted).client_address(peer, forwarded_for) == client


def test_an_occupancy_is_bounded_in_all_and_per_source() -> None:
    """One source cannot take the room of the others; a proxy asks for many."""
    occupancy = Occupancy(most=10, most_per_source=6)
    assert occupancy.occupy("a", 6)
    assert not occupancy.occupy("a", 1)
    assert occupancy.occupy("b", 4)
    assert not occupancy.occupy("c", 1)
    occupancy.vacate("b", 4)
    assert occupancy.occupy("a", 4, is_proxy=True)
    assert occupancy.total == 10
    occupancy.vacate("a", 10)
    assert occupancy.total == 0 and not occupancy._amounts
