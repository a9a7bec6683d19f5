"""Asking a mesh with typed operations, without being a member of it: `connect` yields a `MeshClient`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from mesh import client as client_module
from mesh.client import Client
from mesh.later.due import Due, Ticket
from mesh.operations.block import Block
from mesh.operations.calling import Caller
from mesh.operations.operation import Operation
from mesh.operations.sending import checked_address, checked_request, request_name_of, ticket_of
from mesh.requests.once import KEEP, Once
from mesh.requests.protocol import Address
from mesh.roster import Member
from mesh.settings import MeshSettings
from mesh.wire.clients import Connections

B = TypeVar("B")


class MeshClient(Caller):
    """A client without a lease. It has no class of its own, so each of its requests names an address: `to=Class("A")`.

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
        """Send a request whose reply nobody waits for; return when Redis has the request.

        The request is handled even if this client has ended. It begins at once, `after` some time, or `at` a moment of
        Redis's clock. A request for later begins up to half a second late, because a replica learns of it only with the
        renewal of its lease. If the idempotency `key` was used before for the same operation and body, nothing is sent;
        KeyReused says that the body was another one. Raises UsageError, InvalidBody, Busy, KeyReused, and NoReplica for
        a request that begins at once.
        """
        op_name, body_json = checked_request(op, body)
        due, once = Due.of(after, at), Once.of(key, keep)
        ticket = ticket_of(op_name, once)
        await self.client.send(
            checked_address(to), op_name, body_json, key=ticket.key, due=due, once=once, limit=op.limit_of(body)
        )
        return ticket

    async def cancel(self, ticket: Ticket) -> bool:
        """Cancel a request that was sent; return False if the request has ended already.

        If a replica works on the request now, its work has no effect.
        """
        return await self.client.cancel(request_name_of(ticket))

    async def roster(self) -> list[Member]:
        """Return the rows of the roster at this moment."""
        return await self.client.roster()

    async def books(self) -> dict[str, int]:
        """Return the number of the mesh's requests by outcome; `accepted` is the sum of all other numbers."""
        return await self.client.books()


def connect(
    url: str | None = None,
    *,
    settings: MeshSettings | None = None,
    connections: Connections | None = None,
) -> Block[MeshClient]:
    """Become a client of the mesh at this address (or the one that the environment names), without a lease.

    `connect` does not wait for Redis: while Redis cannot be reached, calls raise Unavailable. Raises SetupError if the
    server or the credentials are not those of this mesh.
    """
    client_block = client_module.connect(url, settings=settings, connections=connections)
    return Block("async with connect(url) as mesh:", _yield_client(client_block))


@contextlib.asynccontextmanager
async def _yield_client(client_block: AbstractAsyncContextManager[Client]) -> AsyncIterator[MeshClient]:
    async with client_block as client:
        yield MeshClient(client)
