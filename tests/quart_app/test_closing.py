"""A listening socket is closed without resetting anybody."""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from quart_app.closing import last_call, refuse_new

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux")


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        server = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"no {request.param} here")
    with server:
        server.settimeout(5)
        yield server


def connect(to: socket.socket, timeout_s: float) -> socket.socket:
    return socket.create_connection(to.getsockname()[:2], timeout=timeout_s)


def test_who_connected_before_is_served_after(listening: socket.socket) -> None:
    """The accept queue is not touched: its people are accepted, read and answered."""
    with connect(listening, 5) as early:
        assert refuse_new(listening)
        early.sendall(b"question")
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
        assert early.recv(100) == b"answer"


def test_nobody_connects_who_would_then_be_reset(listening: socket.socket) -> None:
    """Without the filter this connection would be made, and die unread with the socket."""
    assert refuse_new(listening)
    with pytest.raises(TimeoutError):
        connect(listening, 0.2)


def test_who_was_held_off_is_refused_once_the_socket_is_closed(listening: socket.socket) -> None:
    """Refused means: nothing was sent, go elsewhere. It takes the client's kernel a second to ask again."""
    assert refuse_new(listening)
    with socket.socket(listening.family) as late:
        late.setblocking(False)
        late.connect_ex(listening.getsockname()[:2])
        listening.close()
        select.select([], [late], [], 5)
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


async def test_the_last_call_waits_for_what_the_guests_have_to_say(listening: socket.socket) -> None:
    """A connection without its request yet is not closed; where nothing is to be refused, nobody waits."""
    began = time.monotonic()
    await last_call([listening], 0.2)
    assert time.monotonic() - began >= 0.2
    await last_call([], 5)
    await last_call([listening], 0)
    assert time.monotonic() - began < 2
