"""Checks of what is sent, and requests that no caller waits for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from mesh.errors import UsageError
from mesh.later.due import Due, Ticket
from mesh.operations.operation import Operation
from mesh.requests.effects import Effects
from mesh.requests.once import Once
from mesh.requests.protocol import Address, Class, Database


def dispatch(effects: Effects, op: Operation[Any, Any], body: Any, to: Address, due: Due | None) -> Ticket:
    """Add a request without a caller to a transaction. Raises UsageError, InvalidBody."""
    name, text = sendable(op, body)
    ticket, limit = Ticket(name), op.limit_of(body)
    if due is not None:
        effects.send_later(checked_address(to), name, text, due, key=ticket.key, limit=limit)
    elif limit:
        effects.send_limited(checked_address(to), name, text, limit, key=ticket.key)
    else:
        effects.send(checked_address(to), name, text, key=ticket.key)
    return ticket


def sendable(op: Operation[Any, Any], body: Any) -> tuple[str, bytes]:
    """Return an operation's name and the JSON of a body. Raises UsageError, InvalidBody."""
    if not isinstance(op, Operation):
        raise UsageError(
            f"an operation is what @operations.command returned or Operation(name, Body, Reply), not {op!r:.100}"
        )
    return op.name, op.encode_body(body)


def checked_address(to: Address) -> Address:
    """Return an address. Raises UsageError for what is none."""
    if not isinstance(to, Class | Database):
        raise UsageError(f'a request is sent to Class("A") or Database(3), not to {to!r:.100}')
    return to


def once_of(key: str | None, keep: timedelta, due: Due | None) -> Once | None:
    """Return the idempotency key of a request that is sent; None if it has none. Raises UsageError."""
    once = Once.of(key, keep)
    if once is not None and due is not None:
        raise UsageError("a request that is sent for later takes no key=; its ticket names it")
    return once


def key_of(ticket: Ticket) -> str:
    """Return the name of a request that was sent. Raises UsageError for what is no ticket."""
    if not isinstance(ticket, Ticket):
        raise UsageError(f"cancel() takes the Ticket that send() returned, not {ticket!r:.100}")
    return ticket.key
