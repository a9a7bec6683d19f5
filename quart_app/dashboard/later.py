"""The panel of requests and schedules that wait for their time, in the same form as the panels of services."""

from __future__ import annotations

from mesh.control import LaterRequest, ScheduledOperation, Waiting
from quart_app.panels import Panel, PanelFigure, PanelItem, counted, duration, shortened

#: The most requests, and most schedules, that are shown; those that are due next come first.
MOST_SHOWN = 10
#: The most characters of the last try's error that are shown.
MOST_ERROR_CHARACTERS = 120


def panel(waiting: Waiting, now_ms: int) -> Panel:
    """Return the panel; `now_ms` is Redis's clock."""
    items = [_request_item(request, now_ms) for request in waiting.requests] + [
        _schedule_item(schedule, now_ms) for schedule in waiting.schedules
    ]
    return Panel(
        "later",
        "Later",
        note="requests that wait for their time, and operations that run by themselves",
        figures=[
            PanelFigure("requests wait", f"{waiting.request_count:,}", _note_if_cut(waiting.request_count)),
            PanelFigure("schedules", f"{waiting.schedule_count:,}", _note_if_cut(waiting.schedule_count)),
        ],
        items=items,
    )


def _note_if_cut(count: int) -> str:
    return f"the next {MOST_SHOWN} are shown" if count > MOST_SHOWN else ""


def _request_item(request: LaterRequest, now_ms: int) -> PanelItem:
    address = f"database {request.to[2:]}" if request.to.startswith("db") else f"class {request.to}"  # "db3" or "A"
    lines = [f"{request.op} for {address}, {_waits_for(request, now_ms)}"]
    if request.tries:
        lines.append(f"after {counted(request.tries, 'try')}: {shortened(request.error, MOST_ERROR_CHARACTERS)}")
    return PanelItem(request.key, "waits again" if request.tries else "waits", lines)


def _waits_for(request: LaterRequest, now_ms: int) -> str:
    """Return what a request waits for: a moment, a place in its lane, or the end of a pause."""
    if request.waits_for == "pause":
        return "until its operation goes on"
    if request.waits_for == "lane":
        longest_wait = "" if request.due_ms is None else f", for {duration(max(0, request.due_ms - now_ms))} at most"
        return f"for a place in its lane{longest_wait}"
    return "due never" if request.due_ms is None else _due(request.due_ms, now_ms)


def _schedule_item(schedule: ScheduledOperation, now_ms: int) -> PanelItem:
    """Return what the live page shows of one schedule."""
    scope = ", on every database" if schedule.each else ""
    last_tick = f"; the last one was {duration(max(0, now_ms - schedule.last_ms))} ago" if schedule.last_ms else ""
    return PanelItem(
        schedule.op,
        "schedule",
        [f"{schedule.cron} ({schedule.tz}){scope}", f"{_due(schedule.next_ms, now_ms)}{last_tick}"],
    )


def _due(due_ms: int, now_ms: int) -> str:
    return f"due in {duration(due_ms - now_ms)}" if due_ms > now_ms else f"due since {duration(now_ms - due_ms)}"
