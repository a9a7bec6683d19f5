"""Checks of the operation, body and address of a request, and sending of requests that no caller waits for."""

from __future__ import annotations

from typing import Any

from mesh.errors import UsageError
from mesh.later.due import Due, Ticket
from mesh.operations.operation import Operation
from mesh.requests.effects import Effects
from mesh.requests.once import Once
from mesh.requests.protocol import Address, Class, Database


def add_send(
    effects: Effects, op: Operation[Any, Any], body: Any, to: Address, due: Due | None, once: Once | None
) -> Ticket:
    """Add a request without a caller to a transaction's effects. Raises UsageError, InvalidBody, KeyReused."""
    op_name, body_json = checked_request(op, body)
    ticket, limit = ticket_of(op_name, once), op.limit_of(body)
    # With `place`, the commit looks at the idempotency key and the limit. A request for later without a key meets its
    # limit only when it is due.
    if once is not None or (limit and due is None):
        effects.place(checked_address(to), op_name, body_json, key=ticket.key, limit=limit, once=once, due=due)
    elif due is not None:
        effects.send_later(checked_address(to), op_name, body_json, due, key=ticket.key, limit=limit)
    else:
        effects.send(checked_address(to), op_name, body_json, key=ticket.key)
    return ticket


def checked_request(op: Operation[Any, Any], body: Any) -> tuple[str, bytes]:
    """Return an operation's name and the JSON of a body. Raises UsageError, InvalidBody."""
    if not isinstance(op, Operation):
        raise UsageError(
            f"an operation is what @operations.command returned or Operation(name, Body, Reply), not {op!r:.100}"
        )
    return op.name, op.encode_body(body)


def checked_address(to: Address) -> Address:
    """Return `to` if it is an address. Raises UsageError for anything else."""
    if not isinstance(to, Class | Database):
        raise UsageError(f'a request is sent to Class("A") or Database(3), not to {to!r:.100}')
    return to


def ticket_of(op_name: str, once: Once | None) -> Ticket:
    """Return the ticket of a request. All requests of an operation with one idempotency key have the same ticket."""
    return Ticket(op_name) if once is None else Ticket(op_name, once.name(op_name))


def request_name_of(ticket: Ticket) -> str:
    """Return the name of the request of a ticket, not its idempotency key. Raises UsageError without a ticket."""
    if not isinstance(ticket, Ticket):
        raise UsageError(f"cancel() takes the Ticket that send() returned, not {ticket!r:.100}")
    return ticket.key
