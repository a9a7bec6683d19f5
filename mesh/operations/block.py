"""Blocks that are entered by `async with`. Each other use is a mistake, and the error says what to write."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from mesh.errors import UsageError

T_co = TypeVar("T_co", covariant=True)


class AsyncOnly:
    """The base of objects that only `async with` can enter. `usage` is an example, which the errors show."""

    usage: str

    if not TYPE_CHECKING:  # a type checker reports these mistakes only if it does not see the methods

        def __enter__(self) -> Any:
            raise UsageError(f"write `{self.usage}`: a plain `with` cannot wait")

        def __exit__(self, *exc_info: Any) -> None:
            """Do nothing. A plain `with` calls `__enter__`, which explains the mistake, only if this method exists."""

        def __await__(self) -> Any:
            raise UsageError(f"write `{self.usage}`: this is a block, and there is nothing to await")


class Block(AsyncOnly, AbstractAsyncContextManager[T_co, bool | None]):
    """A block around an asynchronous context manager."""

    def __init__(self, usage: str, inner: AbstractAsyncContextManager[T_co, bool | None]) -> None:
        self.usage = usage
        self._inner = inner

    async def __aenter__(self) -> T_co:
        return await self._inner.__aenter__()

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(error_type, error, traceback)

    if not TYPE_CHECKING:  # a type checker reports this mistake only if it does not see the method

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"a block that was not entered has no {name!r}: write `{self.usage}`")
