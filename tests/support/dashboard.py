"""Made-up figures for the live page."""

from __future__ import annotations

from typing import Any

from mesh import Member
from mesh.dead.letters import DeadLetter
from quart_app.dashboard.figures import DatabaseFigures, Figures, StreamFigures


def member(database: int, **facts: Any) -> Member:
    known = {
        "database": database, "cls": "A", "epoch": 7, "replica": f"replica-{database}", "pid": 1, "public": "h:1",
        "private": "h:2", "state": "ready", "since": 0, "version": "1.0", "leased": True,
    }  # fmt: skip
    return Member(**{**known, **facts})


def place(database: int, state: str = "ready", in_hand: int = 0, **facts: Any) -> DatabaseFigures:
    return DatabaseFigures(database, state, member(database, **facts), 2000, in_hand)


def stream(name: str, length: int = 0, pending: int = 0, oldest_ms: int | None = None) -> StreamFigures:
    return StreamFigures(name, length, pending, 0, oldest_ms, ())


def letter(reason: str) -> DeadLetter:
    return DeadLetter("1-0", 1, "request", "mesh:requests:A", reason, "count.put", "3", 2, "{}")


QUIET = Figures(
    at_ms=1_000_000,
    books={
        "accepted": 5,
        "answered": 3,
        "expired": 0,
        "cancelled": 0,
        "dead": 1,
        "lost": 0,
        "in_flight": 1,
        "waiting": 0,
    },
    places=[place(1), place(2, cls="B"), DatabaseFigures(0, "free")],
    streams=[stream("A"), stream("db1")],
    dead=0,
    recent_dead=(),
    paused=(),
    rates={},
)
