"""Blocks that are entered by `async with`, and what other uses are told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh import UsageError, connect, join
from mesh.operations.block import Block
from mesh.testing import MeshKit


@contextlib.asynccontextmanager
async def suppressing(seen: list[str]) -> AsyncIterator[str]:
    seen.append("begin")
    with contextlib.suppress(KeyError):
        yield "inside"
    seen.append("end")


async def test_a_block_is_the_context_manager_that_it_is_given() -> None:
    """A block passes errors on, and may suppress them."""
    seen: list[str] = []
    async with Block("async with it:", suppressing(seen)) as found:
        seen.append(found)
        raise KeyError
    assert seen == ["begin", "inside", "end"]
    with pytest.raises(ValueError, match="mine"):
        async with Block("async with it:", suppressing(seen)):
            raise ValueError("mine")


@pytest.mark.parametrize(
    ("make", "usage"),
    [
        (join, r"async with join\(operations\) as mesh:"),
        (connect, r"async with connect\(url\) as mesh:"),
        (MeshKit, r"async with MeshKit\(operations\) as kit:"),
    ],
)
async def test_other_uses_say_what_to_write(make: Callable[[], Any], usage: str) -> None:
    """A plain `with`, an `await`, and a block that was never entered."""
    with pytest.raises(UsageError, match=f"{usage}`: a plain `with` cannot wait"):
        with make():
            raise AssertionError
    with pytest.raises(UsageError, match=f"{usage}`: this is a block"):
        await make()
    with pytest.raises(AttributeError, match="call"):
        make().call()
