"""The view of requests: the newest answers, and the timeline of one request.

These are pure functions of what `mesh.control` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh import keys
from mesh.control import JourneyStep, grouped


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """One request on a line of the timeline. It waits from `wait_from` to `work_from`, and is worked on until `end`.

    These positions are percentages of the timeline's width, from 0 to 100.
    """

    step: JourneyStep
    wait_from: float
    work_from: float
    end: float


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer of the list. For a gather, `step` is its slowest part and `parts` the number of its parts, else 1."""

    step: JourneyStep
    parts: int


def newest_answers(steps: Sequence[JourneyStep], wanted: Mapping[str, str], most_rows: int) -> list[AnswerRow]:
    """Return the newest answers that fit all of the texts in `wanted`; an empty text fits any answer.

    `op` is the beginning of an operation's name, `status` a status, and `to` a worker or a database. A gather is one
    row.
    """
    fitting = [
        step
        for step in steps
        if step.op.startswith(wanted.get("op", ""))
        and wanted.get("status", "") in ("", step.status)
        and wanted.get("to", "") in ("", step.worker, step.database, f"db{step.database}")
    ]
    answer_rows = [AnswerRow(max(group, key=lambda step: step.total_ms), len(group)) for group in grouped(fitting)]
    return answer_rows[:most_rows]


def timeline(steps: Sequence[JourneyStep], now_ms: int) -> list[TimelineRow]:
    """Return the lines of one request and its parts, on one scale from the first acceptance to the last answer.

    Until a request is answered, the present moment `now_ms` stands for its answer.
    """
    # `accepted_ms` is 0 if the moment of the acceptance is not known.
    dated_steps = [step for step in steps if step.accepted_ms]
    if not dated_steps:
        # Without a scale, all positions are at its beginning.
        return [TimelineRow(step, 0, 0, 0) for step in steps]
    first_ms = min(step.accepted_ms for step in dated_steps)
    last_ms = max(step.answered_ms or now_ms for step in dated_steps)
    width_ms = max(1, last_ms - first_ms)

    def percentage(moment_ms: float) -> float:
        return round(100 * min(1.0, max(0.0, (moment_ms - first_ms) / width_ms)), 2)

    return [
        TimelineRow(
            step,
            percentage(step.accepted_ms),
            percentage((step.answered_ms or now_ms) - step.took_us / 1000),
            percentage(step.answered_ms or now_ms),
        )
        for step in steps
    ]


def target(step: JourneyStep) -> str:
    """Return for people where a request went: the class or database of its stream, or else the database that answered.

    Returns "" if neither is known.
    """
    if step.stream.startswith(keys.REQUESTS):
        return step.stream.removeprefix(keys.REQUESTS)
    return f"database {step.database}" if step.database else ""
