"""What `mesh up` prints: to a terminal, a file or a pipe, for as long as there is a reader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from mesh import Member, Missing

COLUMNS = ("database", "class", "state", "replica", "pid", "public", "private", "since", "epoch")
#: Columns of a narrow terminal. The state is always among them.
SHORT = ("database", "class", "state", "replica", "public", "private")
WIDE = 118
#: Columns that are short enough never to be folded.
WHOLE = ("database", "class", "state")


class Teller:
    """Prints lines. A terminal that was closed is no reason to stop a mesh half-way."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()

    def say(self, text: str) -> None:
        """Print one event with the time of day."""
        self.show(f"{datetime.now():%H:%M:%S} {text}")

    def show(self, shown: Any) -> None:
        """Print a text or a table as it is."""
        with contextlib.suppress(OSError):
            if isinstance(shown, Table):
                self._console.print(shown)
            else:
                self._console.print(shown, highlight=False, soft_wrap=True, markup=False)

    def roster(self, members: Iterable[Member]) -> None:
        """Print who holds what."""
        self.show(table(members, self._console.width))


def row(member: Member) -> dict[str, Any]:
    """Return a member's row, by the names of the columns."""
    return {
        "database": member.database,
        "class": member.cls,
        "epoch": member.epoch,
        "replica": member.replica,
        "pid": member.pid,
        "public": member.public,
        "private": member.private,
        "state": member.state,
        "not_ready": list(member.not_ready),
        "since": datetime.fromtimestamp(member.since / 1000, UTC).isoformat(timespec="milliseconds"),
    }


def missing_row(missing: Missing) -> dict[str, Any]:
    """Return the row of a database that has no replica, by the names of the columns that it has."""
    return {"database": missing.database, "class": missing.cls, "state": "missing", "has_data": missing.has_data}


def missing_sentence(missing: Missing) -> str:
    """Say what a missing database means to requests."""
    name = f"database {missing.database}" + (" holds data and" if missing.has_data else "")
    if missing.cls:
        return f"{name} has no replica; the replica of class {missing.cls} is expected back, and requests get 503"
    return f"{name} has no replica; reads leave it out and say so"


def table(members: Iterable[Member], width: int) -> Table:
    """Return the roster as a table that fits the width; cells of a very narrow one are folded, not cut."""
    wide = width >= WIDE
    made = Table() if wide else Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    columns = COLUMNS if wide else SHORT
    for name in columns:
        justify: JustifyMethod = "right" if name in {"database", "pid", "epoch"} else "left"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=name in WHOLE)
    for one in map(row, members):
        cells = {**one, "since": one["since"][11:19] + "Z"}
        if one["not_ready"]:
            cells["state"] += f" without {', '.join(one['not_ready'])}"
        made.add_row(*(str(cells[name]) for name in columns))
    return made
