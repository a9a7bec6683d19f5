"""The last hour, from the books that the mesh keeps once a minute (`mesh:minutes`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from quart_app.dashboard.figures import moment_of

MINUTES = 60
MINUTE_MS = 60_000


def answered(entries: Sequence[tuple[str, Mapping[str, str]]]) -> list[float]:
    """Return how many requests were answered in each of the last minutes, oldest first; at most 60 minutes.

    `entries` are in the order of the stream. Minutes in which no replica was live have no entry. The requests that were
    counted between the entries on both sides of such a gap are spread evenly over its minutes.
    """
    counts: list[float] = []
    for (earlier, before), (later, after) in itertools.pairwise(entries):
        passed = max(1, round((moment_of(later) - moment_of(earlier)) / MINUTE_MS))
        # A count can fall: after somebody has emptied the server, its counts begin at 0 again.
        grown = max(0, int(after.get("answered", 0)) - int(before.get("answered", 0)))
        counts += [grown / passed] * min(passed, MINUTES)
    return counts[-MINUTES:]
