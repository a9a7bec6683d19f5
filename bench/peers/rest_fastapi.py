"""The FastAPI application of the REST peers: it checks the body, asks a worker, and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field
from rest_engine import Items


class Item(BaseModel):
    value: Annotated[int, Field(ge=2)]
    ttl: Annotated[int, Field(ge=1)]
    cls: Literal["A", "B", "C", "D"]


class Found(BaseModel):
    value: int
    prime_factors: list[int]


def application(
    compute: Callable[[Items], Awaitable[list[list[int]]]], connected: Callable[[], AbstractAsyncContextManager[object]]
) -> FastAPI:
    """Return the application. `compute` asks a worker; `connected` holds the connection to it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with connected():
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/values")
    async def values(items: list[Item]) -> list[Found]:
        found = await compute([(item.value, item.ttl) for item in items])
        return [Found(value=item.value, prime_factors=primes) for item, primes in zip(items, found, strict=True)]

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    return app
