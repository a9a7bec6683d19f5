"""Shows operators the grades: the newest entry of the log, and how many entries each replica is behind."""

from __future__ import annotations

from collections.abc import Sequence

from mesh import Member
from mesh.journal import View
from quart_app.panels import Panel, PanelFigure, PanelItem, counted

#: The field of the roster row that says how far a replica has applied the log; "" while it restores.
POSITION_FIELD = "grades"


def panel_of(view: View | None, members: Sequence[Member]) -> Panel:
    """Return the panel of a log and of the replicas that follow it.

    A replica writes its position into its roster row whenever it renews its lease.
    """
    newest = view.newest.position.number if view else 0
    oldest = view.oldest.position.number if view else 0
    followers = [member for member in members if member.leased and POSITION_FIELD in member.load]
    restoring = [member for member in followers if not member.load[POSITION_FIELD]]
    phrase = f"{counted(len(restoring), 'replica')} restoring grades" if restoring else ""
    return Panel(
        "grades",
        "Log of grades",
        note="the same on every replica",
        phrase=phrase,
        figures=[
            PanelFigure("newest entry", f"{newest:,}", f"from {oldest:,} on the stream" if newest else "no log yet"),
            PanelFigure("replicas ready", f"{len(followers) - len(restoring):,}", f"of {len(followers):,}"),
        ],
        items=[_item(member, newest) for member in sorted(followers, key=lambda member: member.database)],
    )


def _item(member: Member, newest: int) -> PanelItem:
    text = member.load[POSITION_FIELD]
    if not text.isdecimal():
        return PanelItem(member.replica, "restoring", ["It answers 503 until it has the state."], bad=True)
    behind = max(0, newest - int(text))
    return PanelItem(
        member.replica, "ready", [f"entry {int(text):,}, {f'{behind:,} behind' if behind else 'at the end'}"]
    )
