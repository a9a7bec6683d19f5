"""Fixtures of the message service, over a fake and a real Redis; the classes are in `tests/support/messages.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from quart_app.providers.simulator import Provider, create_app
from quart_app.providers.window import Window
from tests.support import messages
from tests.support.messages import Listening, Providers, Running, Start


@pytest.fixture
def listening() -> Listening:
    """`async with listening(app) as url`: an application on a port of its own."""
    return messages.listening


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    """Both providers; the free one accepts two messages and then blocks for half a second."""
    free, paid = Provider("free", Window(2, 0.5), latency_s=0.01), Provider("paid", latency_s=0.01)
    async with messages.listening(create_app(free)) as free_url, messages.listening(create_app(paid)) as paid_url:
        yield Providers(free, paid, free_url, paid_url)


@pytest.fixture
def start() -> Start:
    """`async with start(redis, **settings) as running`: the message service of one replica."""
    return messages.start


@pytest.fixture
async def running(shared: Redis, providers: Providers) -> AsyncIterator[Running]:
    """The message service of one replica, with both providers."""
    async with messages.start(shared, free_url=providers.free_url, paid_url=providers.paid_url) as running:
        yield running
