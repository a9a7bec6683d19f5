"""Every sentence of the overview, from made-up figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh import Missing
from mesh.control import PausedOperation
from quart_app.dashboard.figures import DatabaseFigures
from quart_app.dashboard.words import describe
from tests.support.dashboard import QUIET, letter, place, stream


def test_a_quiet_mesh_needs_no_attention() -> None:
    """The page of a quiet mesh has no colour."""
    found = describe(QUIET)
    assert (found.headline, found.notes, found.difference) == ("All is well.", [], 0)
    assert found.summary == "2 replicas hold 2 of 3 databases. No requests arrive; nothing waits."


def test_the_summary_says_what_goes_on() -> None:
    """One of each is said in the singular."""
    busy = replace(QUIET, places=[place(1)], streams=[stream("A", 5, 4)], rates={"answered": [100.0, 1200.0]})
    found = describe(busy).summary
    assert found == "1 replica holds 1 of 1 databases. 650 requests are answered per second; 1 request waits."


def limited(figures: DatabaseFigures) -> DatabaseFigures:
    """Return the same place with two services that are not ready."""
    assert figures.member is not None
    return replace(figures, member=replace(figures.member, not_ready=("grades", "movements")))


def lacking(database: int, cls: str) -> DatabaseFigures:
    """Return a database that holds data and has no replica."""
    return DatabaseFigures(database, "missing", missing=Missing(database, cls, has_data=True))


PAUSED = [PausedOperation("a.put", 990_000, "ann"), PausedOperation("b.put", 995_000, "bea")]
TROUBLES = [
    ({"places": [place(1), place(2, "lost", cls="B")]}, "class-B", "Class B", "has no ready replica", True),
    ({"places": [place(1), lacking(2, "B")]}, "class-B", "Class B", "has no ready replica", True),
    ({"places": [place(1), place(2, "lost")]}, "place-2", "Database 2", "replica-2 ended without a release", True),
    ({"places": [place(1), place(2, "left")]}, "place-2", "Database 2", "has left in order", False),
    ({"places": [place(1), lacking(2, "B")]}, "place-2", "Database 2", "of class B is expected back; requests", True),
    (
        {"places": [place(1), lacking(2, "")]},
        "place-2",
        "Database 2",
        "holds data and has no replica: its lease has ended. Reads leave",
        True,
    ),
    ({"places": [place(1), place(2, "draining", 1)]}, "place-2", "Database 2", "finishes 1 request and", False),
    ({"places": [place(1), place(2, "starting")]}, "place-2", "Database 2", "starting its services", False),
    ({"places": [place(1), limited(place(2))]}, "place-2", "Database 2", "works without grades, movements. GET", True),
    ({"books": {**QUIET.books, "accepted": 6}}, "books", "The books do not balance", "1 more were accepted", True),
    ({"books": {**QUIET.books, "accepted": 4}}, "books", "The books do not balance", "1 more ended than", True),
    ({"streams": [stream("A", 3, 1, 2500)]}, "old", "Stream class A", "2.5 s old; 2 waiting, 1 in hand", False),
    ({"recent_dead": [letter("x"), letter("y"), letter("y")]}, "dead", "3 dead letters", "reason: y", False),
    ({"recent_dead": [letter("x")] * 50}, "dead", "50 or more dead letters", "reason: x", False),
    ({"paused": PAUSED[:1]}, "paused", "1 operation paused", "a.put. Calls are", False),
    ({"paused": PAUSED}, "paused", "2 operations paused", "a.put, b.put. Calls are refused", False),
    ({"paused": PAUSED}, "paused", "2 operations paused", "last paused 5.0 s ago by bea", False),
    ({"places": [place(1), place(2, version="1.1")]}, "versions", "Versions", "1.0 and 1.1 run side by side", False),
]


@pytest.mark.parametrize(("change", "key", "what", "text", "bad"), TROUBLES)
def test_each_trouble_has_its_sentence(change: dict[str, Any], key: str, what: str, text: str, bad: bool) -> None:
    """The headline says whether something does not work."""
    found = describe(replace(QUIET, **change))
    note = next(note for note in found.notes if note.key == key)
    assert (note.what, note.bad) == (what, bad) and text in note.text
    assert found.headline == ("Something is wrong." if bad else "Working, with 1 thing to look at.")


def test_a_stream_that_is_only_worked_on_gets_no_note() -> None:
    """A long request in hand is kept alive; nobody waits."""
    assert describe(replace(QUIET, streams=[stream("A", 1, 1, 60_000)])).notes == []
