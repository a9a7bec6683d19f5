"""Shows operators the events of movements: how many wait to be stored, and how long the oldest has waited."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from mesh import Mesh
from quart_app.panels import Panel, PanelFigure, counted, duration

#: If the oldest event has waited for longer than this, the headline says how many events are not stored yet. A shorter
#: time would report short delays, too.
OLD_MS = 5000


async def read(mesh: Mesh, stream: str, group: str) -> Panel:
    """Read the length, the oldest entry and the group of the event stream. Raises RedisError."""
    pipeline = mesh.shared.pipeline(transaction=False)
    pipeline.xinfo_stream(stream)
    pipeline.xinfo_groups(stream)
    pipeline.xrange(stream, count=1)
    # An error takes the place of the answer of its command.
    answers = await pipeline.execute(raise_on_error=False)
    # While nobody has sent an event, the stream does not exist, and that is no failure.
    for answer in answers:
        if isinstance(answer, Exception) and not (isinstance(answer, ResponseError) and "no such key" in str(answer)):
            raise answer
    stream_info, groups, first_entries = [None if isinstance(answer, Exception) else answer for answer in answers]
    pending_count = next((group_info["pending"] for group_info in groups or () if group_info["name"] == group), 0)
    # An entry is its id and its fields. The id begins with the ms of the time at which the entry was added.
    return panel_of(
        stream_info,
        pending_count,
        mesh.now_ms() - int(first_entries[0][0].partition("-")[0]) if first_entries else None,
    )


def panel_of(stream_info: Any, pending_count: int, oldest_age_ms: int | None) -> Panel:
    """Return the panel of the event stream.

    `stream_info` is None while the stream does not exist. `oldest_age_ms` is the age of the first entry, or None if
    there is none.
    """
    length = stream_info["length"] if stream_info else 0
    is_old = oldest_age_ms is not None and oldest_age_ms > OLD_MS
    # An entry that has just come may be newer than `now_ms`, which is an estimate of Redis's clock.
    age = f"the oldest came {duration(max(0, oldest_age_ms))} ago" if oldest_age_ms is not None else "all are stored"
    return Panel(
        "movements",
        "Events of movements",
        note="stored once, by any replica",
        phrase=f"{counted(length, 'event')} of movements not stored yet" if is_old else "",
        figures=[
            PanelFigure("not stored yet", f"{length:,}", age, bad=is_old),
            PanelFigure("in hand", f"{pending_count:,}", "of those"),
            PanelFigure("ever came", f"{stream_info['entries-added'] if stream_info else 0:,}"),
        ],
    )
