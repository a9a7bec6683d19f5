"""Typed calls, which a member of a mesh and a client without a lease make in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, Protocol, TypeVar, overload

from mesh.errors import ManyParts, UsageError
from mesh.operations.operation import Operation
from mesh.operations.sending import checked_request
from mesh.requests.answers import Answer, Ask, Replies
from mesh.requests.once import KEEP, Once
from mesh.requests.protocol import Address, Decode

B = TypeVar("B")
R = TypeVar("R")


class Asker(Protocol):
    """Sends requests and collects their replies: a `mesh.raw` replica or client."""

    async def ask(
        self, asks: Sequence[Ask], *, deadline_ms: int | None = ..., decode: Decode = ...
    ) -> list[Answer]: ...

    async def gather(
        self, op: str, body: bytes, *, deadline_ms: int | None = ..., decode: Decode = ...
    ) -> Replies[Any]: ...


class Caller:
    """Calls operations. An operation is a value with types, so type checkers check body and reply of each call.

    Requests without `to=` go to the address `default`; a client without a lease has none.
    """

    def __init__(self, asker: Asker, default: Address | None) -> None:
        self._asker = asker
        self._default_address = default

    @overload
    async def call(
        self,
        op: Operation[None, R],
        *,
        to: Address | None = ...,
        deadline: timedelta | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> R: ...
    @overload
    async def call(
        self,
        op: Operation[B, R],
        body: B,
        *,
        to: Address | None = ...,
        deadline: timedelta | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> R: ...
    async def call(
        self,
        op: Operation[Any, Any],
        body: Any = None,
        *,
        to: Address | None = None,
        deadline: timedelta | None = None,
        key: str | None = None,
        keep: timedelta = KEEP,
    ) -> Any:
        """Send a request and return its reply. Without `to` it goes to a replica of the caller's own class.

        All calls of an operation with one idempotency `key` have one effect and one answer. The answer is kept for as
        long as `keep`. Raises the handler's error, KeyReused if the key was used with another body, or another
        MeshError.
        """
        ask = self._ask_for(op, body, to)
        if key is not None:
            ask.once = Once.of(key, keep)
        (answer,) = await self._asker.ask([ask], deadline_ms=deadline_ms_of(deadline), decode=op.decode_reply)
        if answer.error is not None:
            raise answer.error
        # More than one if a handler forwarded the request to several addresses: each of them replies.
        parts = answer.bodies
        if len(parts) != 1:
            raise ManyParts(f"{op.name} was answered in {len(parts)} parts; use mesh.parts() for it", parts=len(parts))
        return parts[0]

    @overload
    async def parts(
        self, op: Operation[None, R], *, to: Address | None = ..., deadline: timedelta | None = ...
    ) -> list[R]: ...
    @overload
    async def parts(
        self, op: Operation[B, R], body: B, *, to: Address | None = ..., deadline: timedelta | None = ...
    ) -> list[R]: ...
    async def parts(
        self,
        op: Operation[Any, Any],
        body: Any = None,
        *,
        to: Address | None = None,
        deadline: timedelta | None = None,
    ) -> list[Any]:
        """Send a request that several replicas answer in parts (see `tx.forward`), and return all parts."""
        ask = self._ask_for(op, body, to)
        (answer,) = await self._asker.ask([ask], deadline_ms=deadline_ms_of(deadline), decode=op.decode_reply)
        if answer.error is not None:
            raise answer.error
        return answer.bodies

    def _ask_for(self, op: Operation[Any, Any], body: Any, to: Address | None) -> Ask:
        op_name, body_json = checked_request(op, body)
        if to is None:
            to = self._default_address
        if to is None:
            raise UsageError(f'{op_name} needs an address: to=Class("A") or to=Database(3)')
        # None stands for no idempotency key: `call` adds the key.
        return Ask(to, op_name, body_json, None, "" if op.limit is None else op.limit_of(body))

    @overload
    async def gather(self, op: Operation[None, R], *, deadline: timedelta | None = ...) -> Replies[R]: ...
    @overload
    async def gather(self, op: Operation[B, R], body: B, *, deadline: timedelta | None = ...) -> Replies[R]: ...
    async def gather(
        self, op: Operation[Any, Any], body: Any = None, *, deadline: timedelta | None = None
    ) -> Replies[Any]:
        """Send a request to every live database in one step; return the replies by database.

        The replies' attribute `left_out` lists the databases that hold data, but have no replica and expect none back.
        Raises Incomplete if a database did not answer in time, or if a database with data has no replica now and
        expects one back. The error's `missing` lists these databases; after a timeout, `partial` has the other replies.
        Other MeshErrors are possible.
        """
        op_name, body_json = checked_request(op, body)
        if op.limit is not None:
            raise UsageError(
                f"{op_name} has a limit, and cannot be gathered: a gather asks all databases at one moment"
            )
        return await self._asker.gather(
            op_name, body_json, deadline_ms=deadline_ms_of(deadline), decode=op.decode_reply
        )


def deadline_ms_of(deadline: timedelta | None) -> int | None:
    """Return a deadline in ms. Raises UsageError for anything but a positive timedelta."""
    if deadline is None:
        return None
    if not isinstance(deadline, timedelta):
        raise UsageError(f"a deadline is a timedelta, not {deadline!r:.100}; write timedelta(seconds=...)")
    return _cached_ms_of(deadline)


@lru_cache
def _cached_ms_of(deadline: timedelta) -> int:
    """Return a deadline in ms. The results are cached, because the many calls of a program have few deadlines."""
    # A day has 86,400,000 ms.
    ms = deadline.days * 86_400_000 + deadline.seconds * 1000 + deadline.microseconds // 1000
    if ms <= 0:
        raise UsageError(f"a deadline is a time from now on, such as timedelta(seconds=2), not {deadline!r}")
    return ms
