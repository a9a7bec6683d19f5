"""A price lookup: each replica knows the offers of its own suppliers, and a gather finds the cheapest of all.

A supplier belongs to one database, so that its updates are handled in order. A question goes to every live database at
one moment. If a database does not answer in time, the caller gets the best known price, and the numbers of the
databases without an answer.
"""

from __future__ import annotations

from datetime import timedelta

from msgspec import Struct

from mesh import Incomplete, Mesh, Operations, Query, Transaction

prices = Operations("prices")
#: "<product> <supplier>" -> cents
offers = prices.hash("offers", str, int)


class Offer(Struct):
    product: str
    supplier: str
    cents: int


class Wanted(Struct):
    product: str


class Quote(Struct):
    offer: Offer | None
    #: databases that did not answer in time: there may be a better price
    missing: list[int]


@prices.command
async def offer(tx: Transaction, body: Offer) -> None:
    """Store what a supplier wants for a product; 0: no longer on offer."""
    place = offers[f"{body.product} {body.supplier}"]
    if body.cents:
        tx.set(place, body.cents)
    else:
        tx.delete(place)


@prices.query
async def cheapest(view: Query, body: Wanted) -> Offer | None:
    """Return the best offer in this database."""
    found = await view.items(offers)
    names = [(cents, name.partition(" ")[2]) for name, cents in found.items() if name.startswith(f"{body.product} ")]
    return Offer(body.product, min(names)[1], min(names)[0]) if names else None


async def quote(mesh: Mesh, product: str, within: timedelta = timedelta(seconds=1)) -> Quote:
    """Ask all databases, and return the best offer of those that answered."""
    found: dict[int, Offer | None]
    try:
        found = replies = await mesh.gather(cheapest, Wanted(product), deadline=within)
        missing = replies.left_out
    except Incomplete as error:
        found, missing = error.partial, error.missing
    best = [each for each in found.values() if each is not None]
    return Quote(min(best, key=lambda each: each.cents, default=None), missing)
