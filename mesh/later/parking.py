"""Parking: requests of a paused operation that have no caller leave their stream until the operation goes on."""

from __future__ import annotations

from enum import StrEnum

from mesh import keys
from mesh.later.options import OPTIONS
from mesh.wire.link import Link
from mesh.wire.script import Script

#: Moves a request of a paused operation from its stream to `mesh:later`.
PARK = Script.beside(__file__, "park.lua", "taken.lua", *OPTIONS)


class Parked(StrEnum):
    """What park.lua answers: what became of a request that was to wait for the end of a pause."""

    #: the request waits in `mesh:later`
    PARKED = "parked"
    #: the operation is not paused any more
    GOES_ON = "goes-on"
    #: too many requests wait already; the request is still on its stream
    FULL = "full"
    #: another consumer has the request, or it has ended
    NOT_MINE = "not-mine"


async def park(link: Link, stream: str, id: str, consumer: str, op: str, later_bound: int) -> Parked:
    """Let a request of a paused operation wait until the operation goes on. At most `later_bound` requests wait."""
    key_names = [stream, keys.LATER, keys.PAUSED, keys.parked(op)]
    return Parked(await link.script(PARK, key_names, id, consumer, op, later_bound))
