"""The view of requests: the newest answers, and the timeline of one request.

These are pure functions of what `mesh.control` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh import keys
from mesh.control import JourneyStep, grouped


@dataclass(frozen=True, slots=True)
class TimelineLane:
    """One request of a timeline. Positions are percentages of the timeline's width, from 0 to 100."""

    step: JourneyStep
    wait_from: float
    work_from: float
    end: float


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer of the list. For a gather, `step` is its slowest part and `parts` the number of its parts."""

    step: JourneyStep
    parts: int


def rows(steps: Sequence[JourneyStep], wanted: Mapping[str, str], most: int) -> list[AnswerRow]:
    """Return the newest answers, at most `most`, that have what is wanted: `op`, `status`, and `to`.

    `op` is the beginning of an operation's name, and `to` a worker or a database. A gather is one row.
    """
    fitting = [
        step
        for step in steps
        if step.op.startswith(wanted.get("op", ""))
        and wanted.get("status", "") in ("", step.status)
        and wanted.get("to", "") in ("", step.worker, step.database, f"db{step.database}")
    ]
    slowest = [AnswerRow(max(parts, key=lambda step: step.total_ms), len(parts)) for parts in grouped(fitting)]
    return slowest[:most]


def timeline(steps: Sequence[JourneyStep], now_ms: int) -> list[TimelineLane]:
    """Return the lanes of one request, on one scale from its first acceptance to its last answer."""
    dated_steps = [step for step in steps if step.accepted_ms]
    if not dated_steps:
        return [TimelineLane(step, 0, 0, 0) for step in steps]
    first_ms = min(step.accepted_ms for step in dated_steps)
    last_ms = max(step.answered_ms or now_ms for step in dated_steps)
    width_ms = max(1, last_ms - first_ms)

    def percentage(moment_ms: float) -> float:
        return round(100 * min(1.0, max(0.0, (moment_ms - first_ms) / width_ms)), 2)

    return [
        TimelineLane(
            step,
            percentage(step.accepted_ms),
            percentage((step.answered_ms or now_ms) - step.took_us / 1000),
            percentage(step.answered_ms or now_ms),
        )
        for step in steps
    ]


def target(step: JourneyStep) -> str:
    """Return the class or database of the stream that a request went to, or else its database, in words for people."""
    if step.stream.startswith(keys.REQUESTS):
        return step.stream.removeprefix(keys.REQUESTS)
    return f"database {step.database}" if step.database else ""
