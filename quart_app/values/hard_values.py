"""Makes the requests for hard values: a put of one value, in a lane of its class and value.

    a put                           answers null for a hard value without a record, and stores its other values
    the caller of the put, or the   sends a request for only this value into the value's lane, where one request runs
    handler of a job's put          at a time
    the first request in the lane   computes the value and writes its record
    later requests in the lane      find the record and refresh it

So a hard value is computed once in a class, however many requests wait for it. The waiting requests are in
`mesh:later`, and occupy no worker. If the replica that computes dies, another replica takes over the request, which has
kept its place in the lane.

A request in a lane has a limit, and a request with a limit cannot be forwarded. So if another replica of the class has
the record when the request runs, its answer is null, too. Its caller then puts the value without a lane, and this put
is forwarded to that replica.
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

#: The operation of a put in a lane; it has the same handler as PUT.
HARD = "values.put-hard"

#: In the body of a put: the caller knows lanes. It accepts null for a hard value, and then puts the value in its lane.
KNOWS_LANES = "apart"
#: In the body of a request of a job: the job's deadline (ms of Redis's clock). It is here because the mesh gives no
#: deadline to a request that a handler sends into a lane.
UNTIL = "until"

#: All requests of HARD with the same text in the field "of" of their bodies share a lane, in which one runs at a time.
_ONE_AT_A_TIME = Limit(by="of", concurrency=1)


def ask_for_chunk(cls: str, items: Sequence[Mapping[str, Any]], keys_to_read: Sequence[str] = ()) -> Ask:
    """Return the request that puts a chunk. If the values are large, its answer may have null for some of them.

    The submission of the request also reads the shared keys `keys_to_read`. With these, the handler of small values
    needs no trip, so it may run in place. The values of a chunk are all small, or all large.
    """
    body: dict[str, Any] = {"items": items}
    if not is_small(items[0]["value"]):
        body[KNOWS_LANES] = True
    return Ask(Class(cls), PUT, body, read=keys_to_read, in_place=bool(keys_to_read))


def ask_in_lane(item: ItemAsked) -> Ask:
    """Return the request that puts a hard value in its lane."""
    body = _lane_body(item.cls, as_body_item(item))
    return Ask(Class(item.cls), HARD, body, limit=_ONE_AT_A_TIME.words(HARD, body))


def ask_again(item: ItemAsked) -> Ask:
    """Return the request that puts a value whose record another replica refreshes. The answer may be null once more."""
    return ask_for_chunk(item.cls, [as_body_item(item)])


def ask_without_lane(item: ItemAsked) -> Ask:
    """Return the request that puts a hard value if the mesh has a replica of a release that does not know lanes.

    Such a put has no field KNOWS_LANES, so a worker computes the value at once, and the answer is never null.
    """
    return Ask(Class(item.cls), PUT, {"items": [as_body_item(item)]})


def send(transaction: Effects, cls: str, item: Mapping[str, Any], job_fields: Mapping[str, Any], deadline: int) -> None:
    """Send a request for a hard value of a job into its lane, in the commit of this transaction.

    `job_fields` name the job and its step. `deadline` is in ms of Redis's clock.
    """
    body = {**_lane_body(cls, item), **job_fields, UNTIL: deadline}
    # The random key names the request while it waits in `mesh:later`, so it must be unique.
    transaction.place(Class(cls), HARD, body, key=secrets.token_hex(8), limit=_ONE_AT_A_TIME.words(HARD, body))


def deadline_of(request: Request) -> int:
    """Return the deadline of a request (ms of Redis's clock); if a job sent it into a lane, the job's deadline."""
    return int(request.body.get(UNTIL, request.deadline))


def as_body_item(item: ItemAsked) -> dict[str, Any]:
    """Return an item as the body of a request has it."""
    return {"value": item.value, "ttl": item.ttl}


def _lane_body(cls: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request in a lane. The field "of" names the lane: class and value."""
    return {"items": [dict(item)], "of": f"{cls}:{item['value']}"}
