"""Sockets and serving: what listens where, and how it ends."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from quart import Quart

from quart_app import server
from quart_app.settings import AppSettings


def settings(**chosen: object) -> AppSettings:
    return AppSettings(**{"port": 0, "private_port": 0, **chosen})


def test_any_free_port_will_do_and_is_told() -> None:
    """The address that others find in the roster is the one listened on."""
    sockets = server.listen(settings())
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
        sockets = server.listen(settings(**chosen))
        assert sockets.host == host
        sockets.close()
    everywhere = server.listen(settings(host="0.0.0.0"))
    assert everywhere.host not in ("0.0.0.0", "")
    everywhere.close()


def test_a_port_that_is_taken_is_told_with_its_address() -> None:
    """And what was opened already is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            server.listen(settings(port=other, private_port=port))
        socket.create_server(("127.0.0.1", other)).close()


async def test_requests_under_way_are_finished_when_it_stops() -> None:
    """Within its grace; nobody new is let in."""
    app = Quart("test")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.get("/")
    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    sockets = server.listen(settings())
    url = f"http://{sockets.address(sockets.public)}/"
    stop = asyncio.Event()
    serving = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=5))
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.get(url))
        async with asyncio.timeout(5):
            await begun.wait()
        stop.set()
        await asyncio.sleep(0.3)
        sockets.close()
        assert not serving.done()
        go_on.set()
        assert (await asking).text == "done"
    async with asyncio.timeout(5):
        await serving


async def test_no_request_holds_it_up_beyond_its_grace() -> None:
    """One that never ends is ended."""
    app = Quart("test")
    begun = asyncio.Event()

    @app.get("/")
    async def never() -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    sockets = server.listen(settings())
    url = f"http://{sockets.address(sockets.public)}/"
    stop = asyncio.Event()
    serving = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=0.3))
    async with httpx.AsyncClient(timeout=10) as client:
        asking = asyncio.create_task(client.get(url))
        async with asyncio.timeout(5):
            await begun.wait()
        stop.set()
        async with asyncio.timeout(5):
            await serving
        asking.cancel()
    sockets.close()
