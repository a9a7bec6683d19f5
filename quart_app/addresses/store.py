"""Keeps each address as one string in Redis: `shared:addresses:tel:+79111234567`.

A create and an update are one command each (SET with NX or XX), so of two concurrent creates exactly one succeeds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import Busy, Unavailable, failures
from quart_app.addresses.phone import Phone


class Addresses:
    """The addresses of all customers. Every method raises Busy if Redis is full, and Unavailable if Redis fails."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, phone: Phone, address: str) -> bool:
        """Store an address for a phone that has none. Return False, and change nothing, if the phone has one."""
        async with _translated_redis_errors():
            return await self._redis.set(_key(phone), address, nx=True) is not None

    async def update(self, phone: Phone, address: str) -> bool:
        """Replace the address of a phone. Return False, and change nothing, if the phone has none."""
        async with _translated_redis_errors():
            return await self._redis.set(_key(phone), address, xx=True) is not None

    async def read(self, phone: Phone) -> str | None:
        """Return the address of a phone, or None if the phone has none."""
        async with _translated_redis_errors():
            address = await self._redis.get(_key(phone))
        return None if address is None else str(address)

    async def delete(self, phone: Phone) -> bool:
        """Delete the address of a phone. Return False if the phone has none."""
        async with _translated_redis_errors():
            return await self._redis.delete(_key(phone)) == 1


def _key(phone: Phone) -> str:
    return f"shared:addresses:{phone.key}"


@asynccontextmanager
async def _translated_redis_errors() -> AsyncIterator[None]:
    """Raise Busy if Redis is full, and Unavailable for any other failure of Redis.

    So a failure never looks like a missing record. The error text of Redis is dropped, because it can contain a phone.
    """
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        if isinstance(mesh_error := failures.translate(error), Busy):
            raise mesh_error from None
        raise Unavailable(f"the addresses cannot be reached: Redis failed ({type(error).__name__})") from None
