"""Both message providers in processes of their own, for journeys of the message service."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from quart_app.providers import commands

ADMIN = {"email": "admin@example.com", "password": "from the settings"}
ENV = {
    "SERVICES": "messages",
    "MESSAGES_COOKIE_SECURE": "false",
    "MESSAGES_ADMIN_EMAIL": ADMIN["email"],
    "MESSAGES_ADMIN_PASSWORD": ADMIN["password"],
}


@dataclass
class Judge:
    """A provider in a process of its own; `calls` returns what it saw."""

    url: str

    async def calls(self) -> dict[str, Any]:
        async with httpx.AsyncClient(timeout=30) as client:
            found: dict[str, Any] = (await client.get(self.url + "calls")).json()
            return found


@dataclass
class Providers:
    """Both providers, and the environment that tells replicas where they are."""

    free: Judge
    paid: Judge
    env: dict[str, str] = field(default_factory=dict)

    async def taken(self) -> Counter[str]:
        """Return how often a provider accepted each message."""
        calls = (await self.free.calls())["calls"] + (await self.paid.calls())["calls"]
        return Counter(call["message"] for call in calls if call["outcome"] == "taken")


@contextlib.asynccontextmanager
async def provider(kind: str, *options: str) -> AsyncIterator[Judge]:
    """Run one provider while the block lasts."""
    command = [*commands(free_port=0, paid_port=0)[kind], *options]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        line = await asyncio.wait_for(child.stdout.readline(), 30)
        yield Judge(line.decode().split()[-1])
    finally:
        child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def providers(limit: int, block_s: float, latency_ms: int = 20) -> AsyncIterator[Providers]:
    """Run both providers while the block lasts; the free one accepts `limit` messages, then blocks for `block_s`."""
    latency = ("--latency-ms", str(latency_ms))
    free_options = (*latency, "--limit", str(limit), "--block-seconds", str(block_s))
    async with provider("free", *free_options) as free, provider("paid", *latency) as paid:
        env = ENV | {
            "FREE_PROVIDER_URL": free.url,
            "PAID_PROVIDER_URL": paid.url,
            "MESSAGES_FREE_LIMIT": str(limit),
            "MESSAGES_FREE_BLOCK_SECONDS": str(block_s),
        }
        yield Providers(free, paid, env)
