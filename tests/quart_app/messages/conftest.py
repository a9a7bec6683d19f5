"""The message service of one replica, over a fake and a real Redis, with providers on real ports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from hypercorn.asyncio import serve
from hypercorn.config import Config
from prometheus_client import CollectorRegistry
from quart import Quart
from quart.typing import TestClientProtocol as Client
from redis.asyncio import Redis

from quart_app.http import problems
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.service import Messages
from quart_app.messages.settings import MessageSettings
from quart_app.providers.simulator import Provider, create_app
from quart_app.providers.window import Window


@pytest.fixture(params=["fake", "real"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """What a replica calls `shared`, empty."""
    if request.param == "fake":
        redis: Redis = FakeAsyncRedis(decode_responses=True)
    else:
        redis = Redis.from_url(request.getfixturevalue("server").url, decode_responses=True)
    yield redis
    await redis.aclose()


@asynccontextmanager
async def listening(app: Quart) -> AsyncIterator[str]:
    """An application on a port of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    config, stop = Config(), asyncio.Event()
    config.bind, config.loglevel, config.graceful_timeout = [f"fd://{listener.detach()}"], "CRITICAL", 0.2
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield url
    finally:
        stop.set()
        await serving


Listening = Callable[[Quart], AbstractAsyncContextManager[str]]


@pytest.fixture(name="listening")
def listening_fixture() -> Listening:
    """`async with listening(app) as url`"""
    return listening


@dataclass
class Providers:
    """Both providers, and where they are."""

    free: Provider
    paid: Provider
    free_url: str
    paid_url: str

    @property
    def messages(self) -> list[str]:
        """What they took, in the order they saw it."""
        calls = sorted([*self.free.calls, *self.paid.calls], key=lambda call: call.at)
        return [call.message for call in calls if call.outcome == "taken"]


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    """The free one takes two messages and blocks for half a second."""
    free, paid = Provider("free", Window(2, 0.5), latency_s=0.01), Provider("paid", latency_s=0.01)
    async with listening(create_app(free)) as free_url, listening(create_app(paid)) as paid_url:
        yield Providers(free, paid, free_url, paid_url)


@dataclass
class Running:
    """A replica's message service, and its metrics."""

    app: Quart
    registry: CollectorRegistry

    def client(self) -> Client:
        return self.app.test_client()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def user(self, email: str, redis: Redis | None = None, **rights: bool) -> Client:
        """A client that is logged in as a new user; `rights` are written where an administrator would."""
        client = self.client()
        body = {"email": email, "password": "correct horse"}
        made = await (await client.post("/auth/register", json=body)).get_json()
        if redis is not None:
            await redis.hset(f"shared:messages:user:{made['id']}", mapping={n: str(int(v)) for n, v in rights.items()})
        assert (await client.post("/auth/login", json=body)).status_code == 204
        return client


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def start() -> Start:
    """`async with start(redis, **settings) as running`: one replica's service."""

    @asynccontextmanager
    async def start_one(redis: Redis, **settings: Any) -> AsyncIterator[Running]:
        renamed = {"free_url": "FREE_PROVIDER_URL", "paid_url": "PAID_PROVIDER_URL"}
        chosen = {"cookie_secure": False, "free_limit": 2, "free_block_seconds": 0.5} | settings
        registry = CollectorRegistry()
        service = Messages(
            MessageSettings(**{renamed.get(name, name): value for name, value in chosen.items()}),
            MessageMetrics(registry),
        )
        app = Quart(__name__)
        problems.install(app)
        app.register_blueprint(service.routes.blueprint)
        replica: Any = SimpleNamespace(shared=redis)
        async with service.lifespan(replica):
            yield Running(app, registry)

    return start_one


@pytest.fixture
async def running(shared: Redis, providers: Providers, start: Start) -> AsyncIterator[Running]:
    """One replica with both providers."""
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(start(shared, free_url=providers.free_url, paid_url=providers.paid_url))
