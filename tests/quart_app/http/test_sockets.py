"""What a replica listens on, and the address that it tells."""

from __future__ import annotations

import socket

import pytest

from quart_app.http.sockets import listen
from tests.support.serving import settings


def test_any_free_port_will_do_and_is_told() -> None:
    """The address that others find in the roster is the one listened on."""
    sockets = listen(settings())
    try:
        for listening in (sockets.public, sockets.private):
            host, _, port = sockets.address(listening).rpartition(":")
            socket.create_connection((host, int(port)), timeout=2).close()
        assert sockets.address(sockets.public) != sockets.address(sockets.private)
    finally:
        sockets.close()


def test_the_address_told_may_be_another_than_the_one_listened_on() -> None:
    """In a container: its own address, or the one that is set."""
    for chosen, host in (
        ({"advertise_host": "replica-7.mesh"}, "replica-7.mesh"),
        ({"host": "127.0.0.1"}, "127.0.0.1"),
    ):
        sockets = listen(settings(**chosen))
        assert sockets.host == host
        sockets.close()
    everywhere = listen(settings(host="0.0.0.0"))
    assert everywhere.host not in ("0.0.0.0", "")
    everywhere.close()


def test_a_port_that_is_taken_is_told_with_its_address() -> None:
    """And what was opened already is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen(settings(port=other, private_port=port))
        socket.create_server(("127.0.0.1", other)).close()
