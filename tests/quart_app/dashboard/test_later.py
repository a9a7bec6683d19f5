"""The panel of what waits for its time."""

from __future__ import annotations

from mesh.control import LaterRequest, ScheduledOperation, Waiting
from quart_app.dashboard.later import panel

NOW = 10_000_000


def test_each_line_says_when_and_why() -> None:
    """A request that failed waits for its next try; a schedule has its last tick."""
    waiting = Waiting(
        12,
        [
            LaterRequest("a", "notes.put", "A", NOW + 90_000, 0, ""),
            LaterRequest("b", "notes.put", "db3", NOW - 2000, 2, "the printer is off"),
        ],
        1,
        [ScheduledOperation("notes.nightly", "0 4 * * *", "Europe/Berlin", True, NOW + 7_200_000, NOW - 60_000)],
    )
    found = panel(waiting, NOW)
    assert [(figure.value, figure.note) for figure in found.figures] == [("12", "the next 10 are shown"), ("1", "")]
    assert [(item.state, list(item.lines)) for item in found.items] == [
        ("waits", ["notes.put for class A, due in 90 s"]),
        ("waits again", ["notes.put for database 3, due since 2.0 s", "after 2 tries: the printer is off"]),
        ("schedule", ["0 4 * * * (Europe/Berlin), on every database", "due in 2 h; the last one was 60 s ago"]),
    ]


def test_what_no_time_lets_go_says_what_it_waits_for() -> None:
    """A place in its lane, or the end of a pause."""
    waiting = Waiting(
        3,
        [
            LaterRequest("a", "notes.put", "A", None, 0, "", "pause"),
            LaterRequest("b", "notes.put", "A", NOW + 5000, 0, "", "lane"),
            LaterRequest("c", "notes.put", "A", None, 0, "", "lane"),
        ],
        0,
        [],
    )
    assert [item.lines[0] for item in panel(waiting, NOW).items] == [
        "notes.put for class A, until its operation goes on",
        "notes.put for class A, for a place in its lane, for 5.0 s at most",
        "notes.put for class A, for a place in its lane",
    ]
