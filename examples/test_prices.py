"""The price lookup: the cheapest offer of the whole mesh, also while a part of it is silent."""

from __future__ import annotations

from examples.prices import Offer, Quote, offer, prices, quote
from mesh import Database
from mesh.testing import MeshKit

OFFERS = [Offer("tea", "North", 500), Offer("tea", "East", 420), Offer("tea", "South", 480), Offer("ink", "East", 90)]


async def with_offers(kit: MeshKit) -> None:
    for number, each in enumerate(OFFERS):
        await kit[0].call(offer, each, to=Database(1 + number % 3))


async def test_the_cheapest_offer_of_all_databases_is_quoted() -> None:
    """The supplier may be in any database. A price of 0 withdraws an offer."""
    async with MeshKit(prices, replicas=3) as kit:
        await with_offers(kit)
        assert await quote(kit[2], "tea") == Quote(OFFERS[1], missing=[])
        await kit[0].call(offer, Offer("tea", "East", 0), to=Database(2))
        assert await quote(kit[2], "tea") == Quote(OFFERS[2], missing=[])
        assert await quote(kit[0], "salt") == Quote(None, missing=[])


async def test_a_silent_replica_is_named_and_the_others_answer() -> None:
    """A price that may be too high is better than none, as long as the customer is told."""
    async with MeshKit(prices, replicas=3) as kit:
        await with_offers(kit)
        kit.freeze(1)
        assert await quote(kit[0], "tea") == Quote(OFFERS[2], missing=[2])
        kit.thaw(1)
        assert await quote(kit[0], "tea") == Quote(OFFERS[1], missing=[])
