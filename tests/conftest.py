"""Fixtures of all tests; the classes behind them are in `tests/support`.

make_server  `make_server(*options)`: a Redis or Valkey with options of its own
server       a Redis or Valkey for one test, on a port of its own, with its data in the test's folder
mesh_of      `await mesh_of(n)`: members in this process
backend      the same suite over the real server and over fakeredis: `await backend.join(worker)`
shared       a client of an empty Redis, fake and real, for what services share
replicas     `await replicas(n)`: processes of `python -m quart_app`, reached over HTTP
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mesh.testing.fake_server import FakeClient
from quart_app.local.ports import free_port
from quart_app.local.redis_program import ServerProgram, find_server
from tests.support.backend import Backend
from tests.support.replicas import Replicas
from tests.support.server import Server

#: The developer's own `.env` is not for tests.
os.environ["ENV_FILE"] = os.devnull


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`make_server("--maxmemory", "20mb")`: a running server with options of its own, and of `program` if given."""
    made: list[Server] = []

    def make(*options: str, program: ServerProgram | None = None) -> Server:
        folder = tmp_path / f"redis-{len(made)}"
        folder.mkdir()
        server = Server(free_port(), folder, list(options), program=program or find_server())
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A real server for one test."""
    return make_server()


@pytest.fixture
async def mesh_of(server: Server) -> AsyncIterator[Backend]:
    """`await mesh_of(n, worker)`: members in this process, on the real server."""
    async with Backend(server.settings) as members:
        yield members


@pytest.fixture(params=["fake", "real"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Backend in this process, over fakeredis (which enforces no access rules) and over the real server."""
    async with Backend(None if request.param == "fake" else request.getfixturevalue("server").settings) as kit:
        yield kit


@pytest.fixture(params=["fake", "real"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """An empty Redis, fake and real, as a replica's `shared` client."""
    if request.param == "fake":
        redis: Redis = FakeClient(decode_responses=True)
    else:
        redis = Redis.from_url(request.getfixturevalue("server").url, decode_responses=True)
    yield redis
    await redis.aclose()


@pytest.fixture
async def replicas(server: Server, tmp_path: Path) -> AsyncIterator[Replicas]:
    """`await replicas(n)`: processes, reached over HTTP."""
    made = Replicas(server, tmp_path)
    yield made
    await made.close()
