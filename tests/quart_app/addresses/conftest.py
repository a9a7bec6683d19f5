"""Fixtures: the address routes alone, over a fake and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from quart import Quart
from quart.typing import TestClientProtocol as Client
from redis.asyncio import Redis

from quart_app.addresses.routes import AddressRoutes
from quart_app.addresses.settings import AddressSettings
from quart_app.http import problems


@pytest.fixture(params=["fake", "real"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """An empty Redis, as a replica's client `shared`."""
    if request.param == "fake":
        redis: Redis = FakeAsyncRedis(decode_responses=True)
    else:
        redis = Redis.from_url(request.getfixturevalue("server").url, decode_responses=True)
        await redis.flushall()
    yield redis
    await redis.aclose()


def client_over(redis: Any, store_room: Callable[[int], None] = lambda _: None, **settings: Any) -> Client:
    """Return a test client of the address routes over this Redis."""
    app = Quart(__name__)
    problems.install(app)
    context: Any = SimpleNamespace(mesh=SimpleNamespace(shared=redis, memory=SimpleNamespace(store=store_room)))
    app.register_blueprint(AddressRoutes(context, AddressSettings(**settings)).blueprint)
    return app.test_client()


@pytest.fixture
def make_client() -> Callable[..., Client]:
    """Return the function `make_client(redis, **settings)`."""
    return client_over


@pytest.fixture
def client(shared: Redis) -> Client:
    return client_over(shared, default_region="RU")
