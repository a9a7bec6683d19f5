"""Limits for requests whose sender did not know the limit: the replica that reads the request lets the limit decide."""

from __future__ import annotations

from mesh import keys
from mesh.later.options import OPTIONS
from mesh.wire.link import Link
from mesh.wire.script import Script

#: Applies a limit to a request that is on its stream already: the request enters its lane, or waits as its rate says.
ENTER = Script.beside(__file__, "enter.lua", "taken.lua", *OPTIONS)

#: The first words of two answers of enter.lua. MOVED: the request has left its entry, and waits or has a new entry on
#: its stream. NOT_MINE: another consumer has the request, or it has ended.
MOVED, NOT_MINE = "placed", "not-mine"


async def enter(link: Link, stream: str, id: str, consumer: str, limit: str, later_bound: int) -> tuple[str, str]:
    """Put a request on its stream again, or let it wait, as its limit says. At most `later_bound` requests wait.

    The first word of the result is MOVED, NOT_MINE, or a code of submit.lua that says why the request cannot be placed
    now. The second word says what the code is about.
    """
    code, about = await link.script(ENTER, [stream, keys.LATER], id, consumer, limit, later_bound)
    return str(code), str(about)
