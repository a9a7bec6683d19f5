"""Where addresses are: one string per phone, `shared:addresses:tel:+79111234567`.

Creating and updating are one command each (SET with NX or XX), so of two writers exactly one creates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.errors import Unavailable
from quart_app.addresses.phone import Phone


class Addresses:
    """The addresses of all customers. Every method raises Unavailable when Redis does not do its part."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, phone: Phone, address: str) -> bool:
        """Keep an address for a phone that has none. False: it has one, which stays."""
        async with _redis_at_work():
            return await self._redis.set(_key(phone), address, nx=True) is not None

    async def update(self, phone: Phone, address: str) -> bool:
        """Replace the address of a phone. False: there is none, and none is made."""
        async with _redis_at_work():
            return await self._redis.set(_key(phone), address, xx=True) is not None

    async def read(self, phone: Phone) -> str | None:
        """The address of a phone, if there is one."""
        async with _redis_at_work():
            found = await self._redis.get(_key(phone))
        return None if found is None else str(found)

    async def delete(self, phone: Phone) -> bool:
        """Forget the address of a phone. False: there was none."""
        async with _redis_at_work():
            return await self._redis.delete(_key(phone)) == 1


def _key(phone: Phone) -> str:
    return f"shared:addresses:{phone.key}"


@asynccontextmanager
async def _redis_at_work() -> AsyncIterator[None]:
    """Redis out of order is never "no such record"; nor may its words, which can hold a phone, go further."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"the addresses cannot be reached just now ({type(error).__name__})") from None
