"""Free ports of the loopback address."""

from __future__ import annotations

import socket

from quart_app.local.ports import free_port, free_ports


def test_a_wanted_port_is_returned_if_it_is_free() -> None:
    """Two meshes on one machine do not collide: the second gets any other port."""
    free = free_port()
    assert free_port(free) == free
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) not in (0, port)


def test_no_port_is_returned_twice_in_a_while() -> None:
    """The user of an earlier port may not have bound it yet."""
    ports = [port for _ in range(30) for port in free_ports(32)]
    assert len(set(ports)) == len(ports) and all(ports)
