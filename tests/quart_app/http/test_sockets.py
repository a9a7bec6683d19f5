"""What a replica listens on, and the address that it tells."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

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
    """A container tells its own address, or ADVERTISE_HOST."""
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
    """The port that was opened before is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen(settings(port=other, private_port=port))
        socket.create_server(("127.0.0.1", other)).close()


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("listen_when_ready", [False, True])
@pytest.mark.parametrize(("host", "asked"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_an_ipv6_address_is_listened_on_and_told_with_brackets(
    host: str, asked: list[str], listen_when_ready: bool
) -> None:
    """`::` means every address of both families: health checks ask 127.0.0.1."""
    opened = listen(settings(host=host, listen_when_ready=listen_when_ready))
    opened.public.listen()
    try:
        for listening in (opened.public, opened.private):
            port = listening.getsockname()[1]
            for address in asked:
                socket.create_connection((address, port), timeout=5).close()
            told = urlsplit(f"http://{opened.address(listening)}/")
            assert told.port == port and told.hostname not in {None, "::", ""}
            socket.create_connection((told.hostname, port), timeout=5).close()
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("advertised", "told"),
    [("fd00::1", "[fd00::1]"), ("[fd00::1]", "[fd00::1]"), ("10.0.0.1", "10.0.0.1"), ("name.example", "name.example")],
)
def test_an_advertised_host_is_told_as_it_stands_in_a_url(advertised: str, told: str) -> None:
    """Kubernetes hands out the address of a pod without brackets."""
    opened = listen(settings(advertise_host=advertised))
    try:
        assert opened.address(opened.public) == f"{told}:{opened.public.getsockname()[1]}"
    finally:
        opened.close()
