"""The message service of one replica in the test's own process, with providers on real ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

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
from quart_app.providers.simulator import Provider

Listening = Callable[[Quart], AbstractAsyncContextManager[str]]
Start = Callable[..., AbstractAsyncContextManager["Running"]]


@asynccontextmanager
async def listening(app: Quart) -> AsyncIterator[str]:
    """Serve an application on a port of its own and yield its URL."""
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


@dataclass
class Providers:
    """Both providers and their URLs."""

    free: Provider
    paid: Provider
    free_url: str
    paid_url: str

    @property
    def messages(self) -> list[str]:
        """The messages that the providers accepted, in the order of arrival."""
        calls = sorted([*self.free.calls, *self.paid.calls], key=lambda call: call.at)
        return [call.message for call in calls if call.outcome == "taken"]


@dataclass
class Running:
    """The message service of one replica, and its metrics."""

    app: Quart
    registry: CollectorRegistry
    #: a test may replace it, to say that Redis is full
    store_room: Callable[[int], None] = lambda _: None

    def count(self, amount: int) -> None:
        self.store_room(amount)

    def client(self) -> Client:
        return self.app.test_client()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def user(self, email: str, redis: Redis | None = None, **rights: bool) -> Client:
        """Register a user, log in, and return the client; `rights` are written to Redis as an administrator would."""
        client = self.client()
        body = {"email": email, "password": "correct horse"}
        made = await (await client.post("/auth/register", json=body)).get_json()
        if redis is not None:
            await redis.hset(f"shared:messages:user:{made['id']}", mapping={n: str(int(v)) for n, v in rights.items()})
        assert (await client.post("/auth/login", json=body)).status_code == 204
        return client


@asynccontextmanager
async def start(redis: Redis, **settings: Any) -> AsyncIterator[Running]:
    """Run the message service of one replica while the block lasts."""
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
    running = Running(app, registry)
    memory = SimpleNamespace(store=running.count)
    replica: Any = SimpleNamespace(shared=redis, memory=memory)
    async with service.lifespan(replica):
        yield running
