"""Where requests come from, and how much of this replica each source may occupy at once.

An address is here an IP address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from quart_app.settings import AppSettings, split_at_commas


class Proxies:
    """The proxies whose X-Forwarded-For header is believed."""

    def __init__(self, trusted_networks: str) -> None:
        self._networks = [ipaddress.ip_network(network) for network in split_at_commas(trusted_networks)]
        # Requests come from any number of addresses, so the number of kept answers is bounded. With fewer, more answers
        # are looked up again; with more, the kept ones take more memory.
        self._trusts_cached = lru_cache(maxsize=1024)(self._trusts_uncached)

    def trusts(self, address: str) -> bool:
        """Return whether this address belongs to a trusted proxy."""
        return bool(self._networks) and self._trusts_cached(address)

    def client_address(self, peer_address: str, forwarded_for: Sequence[str]) -> str:
        """Return the address of the client behind a peer, as the X-Forwarded-For headers of trusted proxies tell it.

        Each proxy appends the address from which the request came to it. So this reads the addresses from the last one
        back, and stops at the first that is not a trusted proxy. A client can forge only the addresses before that one.
        """
        address = peer_address
        hops = [hop.strip() for line in forwarded_for for hop in line.split(",")]
        while hops and self.trusts(address) and is_address(hops[-1]):
            address = hops.pop()
        return address

    def _trusts_uncached(self, address: str) -> bool:
        if not is_address(address):
            return False
        ip = ipaddress.ip_address(address)
        # An IPv6 socket shows the address of an IPv4 client as ::ffff:192.0.2.1.
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)


def is_address(text: str) -> bool:
    """Return whether this text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Occupancy:
    """The amounts in use, with a bound for all and a bound per source, so that one source leaves room for the others.

    A source is the IP address of a client or proxy. An amount is a number of connections, or of bytes of bodies.
    """

    def __init__(self, most: int, most_per_source: int) -> None:
        self._most = most
        self._most_per_source = most_per_source
        #: source -> the amount that it has in use; none with 0, so that the dictionary does not grow for ever
        self._amounts: dict[str, int] = {}
        #: the amount that all sources have in use
        self.total = 0

    def occupy(self, source: str, amount: int, *, is_proxy: bool = False) -> bool:
        """Count this amount as used by a source and return True, or return False if a bound forbids it.

        A proxy sends requests of many clients, so the bound per source does not hold for it.
        """
        used_by_source = self._amounts.get(source, 0) + amount
        if self.total + amount > self._most or (used_by_source > self._most_per_source and not is_proxy):
            return False
        self._amounts[source] = used_by_source
        self.total += amount
        return True

    def vacate(self, source: str, amount: int) -> None:
        """Undo `occupy` for this amount."""
        self.total -= amount
        remaining = self._amounts[source] - amount
        if remaining:
            self._amounts[source] = remaining
        else:
            del self._amounts[source]


class ClientUsage:
    """What the clients of one port occupy at the moment."""

    def __init__(self, settings: AppSettings) -> None:
        self.proxies = Proxies(settings.trusted_proxies)
        self.connections = Occupancy(settings.max_connections, settings.max_connections_per_source)
        #: bytes of the bodies of requests that are not answered yet; no bound is below MAX_BODY_BYTES
        self.bodies = Occupancy(
            max(settings.max_open_bodies_bytes, settings.max_body_bytes),
            max(settings.max_open_bodies_bytes_per_source, settings.max_body_bytes),
        )
