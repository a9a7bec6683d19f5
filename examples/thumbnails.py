"""Thumbnails: work that needs a processor runs in a pool of processes, and its result is stored once.

A handler must not block the event loop, so the shrinking happens in the pool. When the replica dies meanwhile, another
one does the work again; only one result is committed. The picture is grey, a byte for each pixel, so that the example
needs no library.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial

from msgspec import Struct

from mesh import Operations, Query, Refused, Transaction


class Picture(Struct):
    name: str
    width: int
    pixels: bytes


class Named(Struct):
    name: str


class Thumbnail(Struct):
    width: int
    pixels: bytes


class NotRectangular(Refused, code="thumbnails.not-rectangular"):
    """The number of pixels is not a multiple of the width."""


def shrink(picture: Picture, factor: int) -> Thumbnail:
    """Return the picture with each square of `factor` × `factor` pixels as one pixel. Runs in another process."""
    width, height = picture.width // factor, len(picture.pixels) // picture.width // factor
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            at = y * factor * picture.width + x * factor
            square = [picture.pixels[at + row * picture.width + n] for row in range(factor) for n in range(factor)]
            pixels.append(sum(square) // len(square))
    return Thumbnail(width, bytes(pixels))


class Thumbnails:
    """The operations, with the pool that they work in."""

    def __init__(self, pool: Executor, factor: int = 4) -> None:
        self.operations = operations = Operations("thumbnails")
        stored = operations.hash("stored", str, Thumbnail)

        async def make(tx: Transaction, body: Picture) -> Thumbnail:
            if not body.width or len(body.pixels) % body.width:
                raise NotRectangular(width=body.width)
            small = await asyncio.get_running_loop().run_in_executor(pool, partial(shrink, body, factor))
            tx.set(stored[body.name], small)
            return small

        async def look(view: Query, body: Named) -> Thumbnail | None:
            return await view.get(stored[body.name])

        self.make = operations.command(make)
        self.look = operations.query(look)
