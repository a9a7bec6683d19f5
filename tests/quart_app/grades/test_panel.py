"""What an operator sees of the log of grades."""

from __future__ import annotations

from mesh.journal import Entry, Position, View
from quart_app.grades.panel import panel_of
from tests.support.dashboard import member


def at(number: int) -> Entry:
    return Entry(Position("log", number, f"{number}-0"), "set", "replica-1", "w", "{}")


def test_each_replica_says_how_far_it_is() -> None:
    """Replicas without the service, and those whose lease has ended, are not counted."""
    members = [
        member(2, load={"grades": "1158"}), member(1, load={"grades": "1161"}), member(3, load={"grades": ""}),
        member(4), member(5, load={"grades": "7"}, leased=False),
    ]  # fmt: skip
    found = panel_of(View(at(1000), at(1161)), members)
    assert found.phrase == "1 replica restoring grades"
    assert [(each.value, each.note) for each in found.figures] == [("1,161", "from 1,000 on the stream"), ("2", "of 3")]
    assert [(each.id, each.state, each.lines[0]) for each in found.items] == [
        ("replica-1", "ready", "entry 1,161, at the end"),
        ("replica-2", "ready", "entry 1,158, 3 behind"),
        ("replica-3", "restoring", "It answers 503 until it has the state."),
    ]


def test_before_the_first_change_there_is_no_log() -> None:
    """The headline has nothing to say then."""
    found = panel_of(None, [member(1, load={"grades": "0"})])
    assert (found.phrase, found.figures[0].value, found.figures[0].note) == ("", "0", "no log yet")
