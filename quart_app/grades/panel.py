"""Shows operators the grades: the newest entry of the log, and how many entries each replica is behind."""

from __future__ import annotations

from collections.abc import Sequence

from mesh import Member
from mesh.journal import View
from quart_app.panels import Panel, PanelFigure, PanelItem, counted

#: The field of the roster row that says how far a replica has applied the log; "" while it restores. The service writes
#: it (`Service.told`), and `Member.load` has it.
POSITION_FIELD = "grades"


def panel_of(log_ends: View | None, members: Sequence[Member]) -> Panel:
    """Return the panel of a log and of the replicas that follow it.

    A replica writes its position into its roster row whenever it renews its lease.
    """
    newest_number = log_ends.newest.position.number if log_ends else 0
    oldest_number = log_ends.oldest.position.number if log_ends else 0
    followers = [member for member in members if member.leased and POSITION_FIELD in member.load]
    restoring_members = [member for member in followers if not member.load[POSITION_FIELD]]
    phrase = f"{counted(len(restoring_members), 'replica')} restoring grades" if restoring_members else ""
    return Panel(
        "grades",
        "Log of grades",
        note="the same on every replica",
        phrase=phrase,
        figures=[
            PanelFigure(
                "newest entry",
                f"{newest_number:,}",
                f"from {oldest_number:,} on the stream" if newest_number else "no log yet",
            ),
            PanelFigure("replicas ready", f"{len(followers) - len(restoring_members):,}", f"of {len(followers):,}"),
        ],
        items=[_item(member, newest_number) for member in sorted(followers, key=lambda member: member.database)],
    )


def _item(member: Member, newest_number: int) -> PanelItem:
    """Return what the live page shows of one replica's grades. `newest_number`: the number of the log's last entry."""
    position_text = member.load[POSITION_FIELD]
    if not position_text.isdecimal():
        return PanelItem(member.replica, "restoring", ["It answers 503 until it has the state."], bad=True)
    entries_behind = max(0, newest_number - int(position_text))
    return PanelItem(
        member.replica,
        "ready",
        [f"entry {int(position_text):,}, {f'{entries_behind:,} behind' if entries_behind else 'at the end'}"],
    )
