"""Requests for hard values: a put of one value, in a lane of its class and value.

    a put                    leaves a hard value without a record out of its answer (null), and answers for the others
    its caller, or the job   sends the value alone into its lane, which lets one request run at a time
    the first in the lane    computes the value and writes its record
    the others               find the record and refresh it

So a hard value is computed once in a class, however many requests wait for it. Those that wait are in `mesh:later`, and
hold no worker. When the replica that computes dies, another takes over its request, which has kept its place.

A request with a limit cannot be forwarded. If another replica of the class has the record by now, the request in the
lane leaves the value out, too. Its caller then puts it again without a lane, and that put is forwarded.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from mesh import Class, Limit
from mesh.raw import Ask, Effects, Request
from quart_app.values.chunks import ItemAsked
from quart_app.values.jobs import PUT
from quart_app.values.notation import is_small

HARD = "values.put-hard"

#: In the body of a put whose caller asks for a hard value in its lane where it is left out.
APART = "apart"
#: The deadline of a job (ms of Redis's clock), because the mesh gives requests that are sent into a lane none.
UNTIL = "until"

_ALONE = Limit(by="of", concurrency=1)


def put(cls: str, items: Sequence[Mapping[str, Any]], read: Sequence[str] = ()) -> Ask:
    """Return the put of a chunk, whose answer may leave large values out that are hard."""
    body: dict[str, Any] = {"items": items}
    if not is_small(items[0]["value"]):
        body[APART] = True
    return Ask(Class(cls), PUT, body, read=read)


def put_in_lane(item: ItemAsked) -> Ask:
    """Return the put of a hard value in its lane."""
    body = _body(item.cls, plain(item))
    return Ask(Class(item.cls), HARD, body, limit=_ALONE.words(HARD, body))


def put_again(item: ItemAsked) -> Ask:
    """Return the put of a value that has a record, which its holder refreshes. It may be left out once more."""
    return put(item.cls, [plain(item)])


def put_at_once(item: ItemAsked) -> Ask:
    """Return the put of a hard value that is not left out: its worker computes it without a lane."""
    return Ask(Class(item.cls), PUT, {"items": [plain(item)]})


def send(transaction: Effects, cls: str, item: Mapping[str, Any], job: Mapping[str, Any], deadline: int) -> None:
    """Send the request for a hard value of a job; `job` are the fields that say which step of the job it is."""
    body = {**_body(cls, item), **job, UNTIL: deadline}
    transaction.place(Class(cls), HARD, body, key=secrets.token_hex(8), limit=_ALONE.words(HARD, body))


def deadline_of(request: Request) -> int:
    """Return the deadline of a request, or of the job for which it was sent into a lane."""
    return int(request.body.get(UNTIL, request.deadline))


def plain(item: ItemAsked) -> dict[str, Any]:
    """Return what a request says of an item."""
    return {"value": item.value, "ttl": item.ttl}


def _body(cls: str, item: Mapping[str, Any]) -> dict[str, Any]:
    return {"items": [dict(item)], "of": f"{cls}:{item['value']}"}
