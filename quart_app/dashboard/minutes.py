"""The last hour, from the books that the mesh keeps once a minute (`mesh:minutes`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from quart_app.dashboard.figures import moment_of

#: The most minutes that the overview shows: one hour.
SHOWN_MINUTES = 60
MINUTE_MS = 60_000


def answered_per_minute(entries: Sequence[tuple[str, Mapping[str, str]]]) -> list[float]:
    """Return how many requests were answered in each of the last minutes, oldest first; at most 60 minutes.

    `entries` are in the order of the stream. Minutes in which no replica was live have no entry. Then the requests that
    were answered between the entry before and the entry after are spread evenly over the minutes between them.
    """
    counts: list[float] = []
    for (earlier_id, earlier_counts), (later_id, later_counts) in itertools.pairwise(entries):
        minutes_between = max(1, round((moment_of(later_id) - moment_of(earlier_id)) / MINUTE_MS))
        # A count can fall: after somebody has emptied the server, its counts begin at 0 again.
        answered_between = max(0, int(later_counts.get("answered", 0)) - int(earlier_counts.get("answered", 0)))
        counts += [answered_between / minutes_between] * min(minutes_between, SHOWN_MINUTES)
    return counts[-SHOWN_MINUTES:]
