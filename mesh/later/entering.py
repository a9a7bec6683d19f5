"""Entering a limit late: a replica reads a request whose sender did not know its limit, and has the limit decide."""

from __future__ import annotations

from mesh import keys
from mesh.later.options import OPTIONS
from mesh.wire.link import Link
from mesh.wire.script import Script

ENTER = Script.beside(__file__, "enter.lua", "taken.lua", *OPTIONS)

#: Words of the script: the request waits, or is on its stream anew; another consumer has it.
PLACED, NOT_MINE = "placed", "not-mine"


async def enter(link: Link, stream: str, id: str, consumer: str, limit: str, most: int) -> tuple[str, str]:
    """Put a request on its stream anew, or let it wait, as its limit says.

    Returns PLACED, NOT_MINE, or why it cannot be placed now, as submit.lua says it; and what that is about.
    """
    word, about = await link.script(ENTER, [stream, keys.LATER], id, consumer, limit, most)
    return str(word), str(about)
