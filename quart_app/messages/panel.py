"""What an operator sees of the free provider: how many messages it still takes, and when it opens again."""

from __future__ import annotations

from mesh.quota import Allowance
from quart_app.panels import Panel, PanelFigure, PanelItem, counted, duration


def panel_of(allowance: Allowance) -> Panel:
    """Return the panel of an allowance: what is left, when the provider opens, and how many messages go one by one."""
    is_closed = allowance.reopens_ms is not None
    # A closed provider takes no message, so the whole allowance counts as taken.
    taken_count = allowance.limit if is_closed else allowance.limit - allowance.remaining
    figures = [PanelFigure("free messages left", f"{allowance.remaining:,}", f"of {allowance.limit:,}", bad=is_closed)]
    if is_closed:
        figures.append(PanelFigure("opens in", duration(allowance.retry_after_ms), "users with paid access go on"))
    if allowance.caution:
        figures.append(
            PanelFigure("one at a time", f"{allowance.caution:,}", "messages, until the count is certain again")
        )
    state_in_words = f"closed for {duration(allowance.retry_after_ms)}" if is_closed else "open"
    return Panel(
        "messages",
        "Free provider of /messages",
        note="one allowance for all replicas",
        phrase=f"the free provider is {state_in_words}",
        figures=figures,
        items=[
            PanelItem(
                "allowance",
                "closed" if is_closed else "open",
                [f"{taken_count:,} of {counted(allowance.limit, 'message')} taken"],
                done=taken_count,
                whole=allowance.limit,
                bad=is_closed,
            )
        ],
    )
