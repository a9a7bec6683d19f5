"""A webhook receiver: a provider posts each event at least once, and it has its effect exactly once.

The web application is no member of the mesh. It asks as a client, without a lease, and may run anywhere. A replica
keeps the id of each event for a day, with the answer, among the keys that all replicas share: so a repetition gets the
same answer, whichever replica handles it. `mesh.call(..., key=...)` would keep the answer by itself (docs/once.md);
here the service does so, in state of its own.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta

from msgspec import Struct, ValidationError, json
from quart import Quart, Response, request

from mesh import Class, MeshClient, MeshError, Operations, Query, Transaction

#: How long a provider may repeat an event.
KEPT = timedelta(hours=24)
#: Most old events that each new event removes. It is more than one, so that the number of old events falls.
MOST_REMOVED = 3

payments = Operations("payments")
answers = payments.hash("answers", str, int, shared=True)
received = payments.sorted_set("received", str, shared=True)
balance = payments.value("balance", int, 0, shared=True)


class Paid(Struct):
    event: str
    cents: int


@payments.command
async def pay(tx: Transaction, body: Paid) -> int:
    """Add a payment and return the new balance; of a repetition, the balance that the first one had led to."""
    known = await tx.get(answers[body.event])
    if known is not None:
        return known
    after = await tx.get(balance) + body.cents
    tx.set(balance, after)
    tx.set(answers[body.event], after)
    tx.put(received, {body.event: tx.at.timestamp()})
    # A snapshot: nothing depends on it whether another request removes the same ones.
    for old in await tx.snapshot.range(received, most=(tx.at - KEPT).timestamp(), count=MOST_REMOVED):
        tx.delete(answers[old])
        tx.remove(received, old)
    return after


@payments.query
async def total(view: Query) -> int:
    """Return the balance."""
    return await view.get(balance)


def sign(secret: bytes, body: bytes) -> str:
    """Return the signature that the provider sends with a body."""
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def create_app(mesh: MeshClient, secret: bytes) -> Quart:
    """Return the web application."""
    app = Quart(__name__)

    @app.post("/payments")
    async def receive() -> Response | tuple[str, int]:
        body: bytes = await request.body
        if not hmac.compare_digest(sign(secret, body), request.headers.get("X-Signature", "")):
            return "the signature is wrong", 401
        try:
            paid = json.decode(body, type=Paid)
            after = await mesh.call(pay, paid, to=Class("A"))
        except ValidationError as error:
            return str(error), 422
        except MeshError as error:
            # The provider posts it again.
            return error.detail, 503
        return Response(str(after))

    return app
