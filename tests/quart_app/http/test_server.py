"""Serving an application: how it ends, and answers that the application does not give."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from pathlib import Path

import httpx
import hypercorn
import pytest
import uvloop
from quart import Quart
from structlog.testing import capture_logs

from quart_app.http import server
from quart_app.http.clients import ClientUsage
from quart_app.http.sockets import listen
from tests.support.serving import served, settings


def held() -> tuple[Quart, asyncio.Event, asyncio.Event]:
    """Return an application, the event that a request sets when it begins, and the one that lets it answer "done"."""
    app = Quart("test")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.get("/")
    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    return app, begun, go_on


async def test_requests_under_way_are_finished_when_it_stops() -> None:
    """Requests in progress finish within the grace; new connections are refused."""
    app, begun, go_on = held()
    sockets = listen(settings())
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


def test_uvloop_accepts_several_connections_in_a_turn() -> None:
    """The last of many clients that connect together does not wait for as many turns of a busy event loop."""
    count = 100

    async def turns() -> int:
        clients, sockets, stop = ClientUsage(settings()), listen(settings()), asyncio.Event()
        app, address, turns = Quart("test"), sockets.public.getsockname(), 0
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(address, timeout=5))
            serving = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=1, client_usage=clients))
            async with asyncio.timeout(5):
                while clients.connections.total < count:
                    turns += clients.connections.total > 0
                    await asyncio.sleep(0)
        stop.set()
        await serving
        sockets.close()
        return turns

    assert uvloop.run(turns()) < count / 4


def test_uvloop_accepts_nobody_while_requests_are_finished() -> None:
    """A client that connects while the server stops is refused, however long another one's request takes."""

    async def late() -> None:
        app, begun, go_on = held()
        sockets = listen(settings())
        address = sockets.public.getsockname()
        stop = asyncio.Event()
        serving = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=5))
        async with httpx.AsyncClient() as client, asyncio.timeout(5):
            asking = asyncio.create_task(client.get(f"http://{sockets.address(sockets.public)}/"))
            await begun.wait()
            stop.set()
            with pytest.raises(ConnectionRefusedError):
                while True:
                    socket.create_connection(address, timeout=5).close()
                    await asyncio.sleep(0)
            assert not serving.done()
            go_on.set()
            assert (await asking).text == "done"
            await serving
        sockets.close()

    uvloop.run(late())


async def test_no_request_holds_it_up_beyond_its_grace() -> None:
    """A request that never ends is cancelled; its client is answered with 503 and Retry-After, and the log says so."""
    app = Quart("test")
    begun = asyncio.Event()

    @app.get("/")
    async def never() -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    sockets = listen(settings())
    url = f"http://{sockets.address(sockets.public)}/"
    stop = asyncio.Event()
    serving = asyncio.create_task(server.run(app, [sockets.public], stop.wait, grace_s=0.3))
    with capture_logs() as logged:
        async with httpx.AsyncClient(timeout=10) as client:
            asking = asyncio.create_task(client.get(url))
            async with asyncio.timeout(5):
                await begun.wait()
            stop.set()
            async with asyncio.timeout(5):
                await serving
                answer = await asking
    assert (answer.status_code, answer.json()["status"], answer.headers["Retry-After"]) == (503, 503, "1")
    (line,) = [line for line in logged if line["event"] == "request"]
    assert (line["log_level"], line["status"], line["detail"]) == ("warning", 503, answer.json()["detail"])
    sockets.close()


async def test_idle_connections_do_not_hold_up_the_end() -> None:
    """Idle connections are closed when the server stops, with or without an earlier request."""
    app = Quart("test")
    app.get("/")(lambda: "here")
    async with served(app) as address:
        host, _, port = address.rpartition(":")
        (never, _), (once, writer) = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await once.readuntil(b"here")
        begun = time.monotonic()
    assert time.monotonic() - begun < 0.9, "the grace was waited for"
    assert await never.read() == await once.read() == b""


@pytest.mark.parametrize(
    ("target", "host"), [("?", "x"), ("http://[", "x"), ("/", "a" * 70 + ".x"), ("/", "....")], ids=repr
)
async def test_what_cannot_be_read_is_a_bad_request(target: str, host: str) -> None:
    """Quart raises for such a request, and Hypercorn would answer 500."""
    async with served(Quart("test")) as address:
        listening, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(listening, int(port))
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("patch", sorted(Path("docs/patches").glob("hypercorn-*.patch")), ids=lambda path: path.name)
def test_the_patch_for_hypercorn_fits_the_installed_release(patch: Path) -> None:
    """When Hypercorn has changed there, the patch must follow, or is no longer needed."""
    packages = Path(hypercorn.__file__).parent.parent
    argv = ["git", "apply", "--check", "-p2", "--unsafe-paths", f"--directory={packages}", str(patch.resolve())]
    done = subprocess.run(argv, cwd=packages, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
