"""Asking a mesh with typed operations, without being a member of it: `connect` yields a `MeshClient`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from mesh import client as visitors
from mesh.client import Client
from mesh.later.due import Due, Ticket
from mesh.operations.block import Block
from mesh.operations.calling import Caller
from mesh.operations.operation import Operation
from mesh.operations.sending import checked_address, key_of, sendable, ticket_of
from mesh.requests.once import KEEP, Once
from mesh.requests.protocol import Address
from mesh.roster import Member
from mesh.settings import MeshSettings
from mesh.wire.clients import Connections

B = TypeVar("B")


class MeshClient(Caller):
    """A client without a lease. It has no class of its own, so it names an address: `to=Class("A")`.

    `client` is the same client for programs that use `mesh.raw`.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client, None)
        self.client = client
        self.settings: MeshSettings = client.settings

    @overload
    async def send(
        self,
        op: Operation[None, Any],
        *,
        to: Address,
        after: timedelta | None = ...,
        at: datetime | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> Ticket: ...
    @overload
    async def send(
        self,
        op: Operation[B, Any],
        body: B,
        *,
        to: Address,
        after: timedelta | None = ...,
        at: datetime | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> Ticket: ...
    async def send(
        self,
        op: Operation[Any, Any],
        body: Any = None,
        *,
        to: Address,
        after: timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
        keep: timedelta = KEEP,
    ) -> Ticket:
        """Send a request whose reply nobody waits for; return when Redis has it. It outlives this client.

        It begins at once, `after` some time, or `at` a moment, on Redis's clock. A request for later begins up to half
        a second late, because replicas look so often for what others have sent. With an idempotency `key`, nothing is
        sent where the key was used for the same request before. Raises UsageError, InvalidBody, Busy, KeyReused, and
        NoReplica for a request that begins at once.
        """
        name, text = sendable(op, body)
        due, once = Due.of(after, at), Once.of(key, keep)
        ticket = ticket_of(name, once)
        await self.client.send(
            checked_address(to), name, text, key=ticket.key, due=due, once=once, limit=op.limit_of(body)
        )
        return ticket

    async def cancel(self, ticket: Ticket) -> bool:
        """Take back a request that was sent; return False when it is over already.

        A replica that works on it then changes nothing.
        """
        return await self.client.cancel(key_of(ticket))

    async def roster(self) -> list[Member]:
        """Return the rows of the roster at this moment."""
        return await self.client.roster()

    async def books(self) -> dict[str, int]:
        """Count the mesh's requests by outcome; `accepted` is the sum of all the others."""
        return await self.client.books()


def connect(
    url: str | None = None,
    *,
    settings: MeshSettings | None = None,
    connections: Connections | None = None,
) -> Block[MeshClient]:
    """Become a client of the mesh at this address (or the one that the environment names), without a lease.

    This does not wait for Redis: while it cannot be reached, calls raise Unavailable. Raises SetupError when the server
    or the credentials are not those of this mesh.
    """
    connecting = visitors.connect(url, settings=settings, connections=connections)
    return Block("async with connect(url) as mesh:", _client(connecting))


@contextlib.asynccontextmanager
async def _client(connecting: AbstractAsyncContextManager[Client]) -> AsyncIterator[MeshClient]:
    async with connecting as client:
        yield MeshClient(client)
