"""The panel of requests and schedules that wait for their time, in the same form as the panels of services."""

from __future__ import annotations

from mesh.control import LaterRequest, ScheduledOperation, Waiting
from quart_app.panels import Panel, PanelFigure, PanelItem, counted, duration, shortened

#: Most requests, and most schedules, that are shown; those that are due next come first.
SHOWN = 10
#: Most characters of the last try's error that are shown.
ERROR_SHOWN = 120


def panel(waiting: Waiting, now_ms: int) -> Panel:
    """Return the panel; `now_ms` is Redis's clock."""
    items = [_request(each, now_ms) for each in waiting.requests] + [_tick(each, now_ms) for each in waiting.schedules]
    return Panel(
        "later",
        "Later",
        note="requests that wait for their time, and operations that run by themselves",
        figures=[
            PanelFigure("requests wait", f"{waiting.count:,}", _shown(waiting.count)),
            PanelFigure("schedules", f"{waiting.scheduled:,}", _shown(waiting.scheduled)),
        ],
        items=items,
    )


def _shown(count: int) -> str:
    return f"the next {SHOWN} are shown" if count > SHOWN else ""


def _request(each: LaterRequest, now_ms: int) -> PanelItem:
    to = f"database {each.to[2:]}" if each.to.startswith("db") else f"class {each.to}"
    lines = [f"{each.op} for {to}, {_until(each, now_ms)}"]
    if each.tries:
        lines.append(f"after {counted(each.tries, 'try')}: {shortened(each.error, ERROR_SHOWN)}")
    return PanelItem(each.key, "waits again" if each.tries else "waits", lines)


def _until(each: LaterRequest, now_ms: int) -> str:
    """Return what a request waits for: a moment, a place in its lane, or the end of a pause."""
    if each.waits_for == "pause":
        return "until its operation goes on"
    if each.waits_for == "lane":
        left = "" if each.due_ms is None else f", for {duration(max(0, each.due_ms - now_ms))} at most"
        return f"for its turn in its lane{left}"
    return "due never" if each.due_ms is None else _due(each.due_ms, now_ms)


def _tick(each: ScheduledOperation, now_ms: int) -> PanelItem:
    where = ", on every database" if each.each else ""
    last = f"; the last one was {duration(max(0, now_ms - each.last_ms))} ago" if each.last_ms else ""
    return PanelItem(each.op, "schedule", [f"{each.cron} ({each.tz}){where}", f"{_due(each.next_ms, now_ms)}{last}"])


def _due(at_ms: int, now_ms: int) -> str:
    return f"due in {duration(at_ms - now_ms)}" if at_ms > now_ms else f"due since {duration(now_ms - at_ms)}"
