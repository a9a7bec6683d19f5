"""What `mesh up` prints to a terminal, a file or a pipe. Without a reader, the lines are dropped."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import IO, Any, cast

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from mesh import Member, Missing
from quart_app.logs import Sink

WIDE_COLUMNS = ("database", "class", "state", "replica", "pid", "public", "private", "since", "epoch")
#: The columns for a terminal whose lines have fewer than WIDE_CHARACTERS, the width of a table with all columns. Among
#: them is always the state.
NARROW_COLUMNS = ("database", "class", "state", "replica", "public", "private")
WIDE_CHARACTERS = 118
#: Columns that are short enough never to be folded.
UNFOLDED_COLUMNS = ("database", "class", "state")


class _NonBlockingOutput:
    """Standard output as a file for Rich. Its writes never wait until somebody reads the output."""

    def __init__(self, stream: IO[str] | None) -> None:
        descriptor: int | None = None
        with contextlib.suppress(OSError, ValueError):  # closed, or without a descriptor of the system
            descriptor = stream.fileno() if stream is not None else None
        self.sink = Sink(descriptor, line_about_dropped=_line_about_dropped)
        self.encoding = getattr(stream, "encoding", "utf-8")
        self._is_terminal = descriptor is not None and os.isatty(descriptor)
        self.write, self.flush = self.sink.write, self.sink.flush

    def isatty(self) -> bool:
        return self._is_terminal


def _line_about_dropped(count: int) -> bytes:
    return b"(%d lines left out: nobody read them)\n" % count


class Teller:
    """Prints lines for `mesh up`. It neither stops nor waits if the terminal was closed or nobody reads the pipe."""

    def __init__(self) -> None:
        self._stream = _NonBlockingOutput(sys.stdout)
        self._console = Console(file=cast("IO[str]", self._stream))

    def close(self) -> None:
        """Wait until all lines are written, for a second at most."""
        self._stream.sink.wait_until_written()

    def say(self, text: str) -> None:
        """Print one event with the time of day."""
        self.show(f"{datetime.now():%H:%M:%S} {text}")

    def show(self, content: Any) -> None:
        """Print a text or a table as it is."""
        if isinstance(content, Table):
            self._console.print(content)
        else:
            self._console.print(content, highlight=False, soft_wrap=True, markup=False)

    def show_roster(self, members: Iterable[Member]) -> None:
        """Print a table that shows which replica holds which database."""
        self.show(roster_table(members, self._console.width))


def member_row(member: Member) -> dict[str, Any]:
    """Return the row of a database that a replica holds, by the names of the columns."""
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
    """Return the row of a database without a replica: only the columns that have a value, by their names."""
    return {"database": missing.database, "class": missing.cls, "state": "missing", "has_data": missing.has_data}


def missing_sentence(missing: Missing) -> str:
    """Return a sentence that says what a missing database means for requests."""
    name = f"database {missing.database}" + (" holds data and" if missing.has_data else "")
    if missing.cls:
        return f"{name} has no replica; the replica of class {missing.cls} is expected back, and requests get 503"
    return f"{name} has no replica; reads leave it out and say so"


def roster_table(members: Iterable[Member], width: int) -> Table:
    """Return the roster as a table of at most this width. Cells of a very narrow table are folded, not cut."""
    is_wide = width >= WIDE_CHARACTERS
    table = Table() if is_wide else Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    columns = WIDE_COLUMNS if is_wide else NARROW_COLUMNS
    for name in columns:
        justify: JustifyMethod = "right" if name in {"database", "pid", "epoch"} else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in UNFOLDED_COLUMNS)
    for row in map(member_row, members):
        cells = {**row, "since": row["since"][11:19] + "Z"}  # the time of day
        if row["not_ready"]:
            cells["state"] += f" without {', '.join(row['not_ready'])}"
        table.add_row(*(str(cells[name]) for name in columns))
    return table
