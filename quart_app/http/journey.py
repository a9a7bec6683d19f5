"""Tells the client which replicas worked for its request, and for how long.

    Mesh-Place: replica-1f2e3d4c;db=5;class=A, replica-5b6a7988;db=2
    Server-Timing: total;dur=3.1, work;dur=0.4

A place is a replica and its database. It has a class if the request was sent to that class, and not to one database.
Both times are in ms. `work` is the longest time that one handler took. The rest of `total` is the way through Redis,
the wait for a replica, and the work of the replica that answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

#: The most places that an answer names. A gather has no more, because Redis has 16 databases.
MOST_PLACES = 16
#: What a reply must have as the id of its replica, and as a number. Scripts write the replies, but somebody may have
#: written another text by hand; it must not get into a header.
_REPLICA_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}", re.ASCII)

#: The replies that the mesh gave while this replica handled one HTTP request. Each is a pair: the address of the mesh's
#: request (a class, or `db` and a number), and the fields of the reply.
Trail = Sequence[tuple[str, Mapping[str, str]]]


def headers_for(trail: Trail, total_s: float) -> dict[str, str]:
    """Return the two headers for an answer to which these replies led; none if no reply names a replica."""
    places: dict[str, None] = {}  # a set that keeps the order
    work_us = 0
    for address, fields in trail:
        took_us = fields.get("took_us", "")
        if _NUMBER.fullmatch(took_us):
            work_us = max(work_us, int(took_us))
        place = _format_place(address, fields.get("from", ""), fields.get("db", ""))
        if place and len(places) < MOST_PLACES:
            places[place] = None
    if not places:
        return {}
    timing = f"total;dur={total_s * 1000:.1f}, work;dur={work_us / 1000:.1f}"
    return {"Mesh-Place": ", ".join(places), "Server-Timing": timing}


# The same places come with nearly every answer. Replicas come and go, so the number of kept places is bounded. With
# fewer, more places are formatted again; with more, the kept ones take more memory.
@lru_cache(maxsize=1024)
def _format_place(address: str, replica: str, database: str) -> str:
    """Return the place of a replica that answered a request to this address; "" if its reply names no replica."""
    if not (_REPLICA_ID.fullmatch(replica) and _NUMBER.fullmatch(database)):
        return ""
    return f"{replica};db={database}" if address.startswith("db") else f"{replica};db={database};class={address}"
