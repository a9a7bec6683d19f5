"""Closing a listening socket without resetting a connection."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from quart_app.http.drain import stop_accepting


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        server = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"no {request.param} here")
    server.setblocking(False)
    with server:
        yield server


def connect(to: socket.socket) -> socket.socket:
    return socket.create_connection(to.getsockname()[:2], timeout=5)


async def serve_one(listening: socket.socket, after_s: float) -> None:
    """Accept one connection after this time, as a busy event loop does, and answer it."""
    await asyncio.sleep(after_s)
    loop = asyncio.get_running_loop()
    accepted, _ = await loop.sock_accept(listening)
    with accepted:
        await loop.sock_sendall(accepted, b"answer to " + await loop.sock_recv(accepted, 100))


async def test_who_had_connected_is_served(listening: socket.socket) -> None:
    """Closing waits until the accept queue is empty; otherwise the kernel would reset this client."""
    with connect(listening) as early:
        early.sendall(b"question")
        serving = asyncio.create_task(serve_one(listening, 0.05))
        await stop_accepting(listening, 0.5)
        listening.close()
        await serving
        assert early.recv(100) == b"answer to question"


async def test_who_comes_later_is_refused_at_once(listening: socket.socket) -> None:
    """A refused client has sent nothing, so a balancer may send any request to another replica."""
    closing = asyncio.create_task(stop_accepting(listening, 5))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        connect(listening)
    assert time.monotonic() - began < 1
    closing.cancel()


async def test_a_connection_may_send_its_request_late(listening: socket.socket) -> None:
    """A connection whose request has not arrived yet is not closed as idle."""
    began = time.monotonic()
    await stop_accepting(listening, 0.2)
    assert time.monotonic() - began >= 0.2


async def test_a_socket_whose_queue_is_never_empty_stops_listening(listening: socket.socket) -> None:
    """If nothing accepts, the wait still ends."""
    with connect(listening):
        async with asyncio.timeout(5):
            await stop_accepting(listening, 0.1)
        with pytest.raises(ConnectionRefusedError):
            connect(listening)


async def test_without_time_to_settle_nothing_is_touched(listening: socket.socket) -> None:
    """Without a balancer in front, there is nothing to wait for."""
    await stop_accepting(listening, 0)
    connect(listening).close()


async def test_a_socket_that_never_listened_is_no_error() -> None:
    """A replica may be told to stop before it was ready."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        await stop_accepting(bound, 0.01)
