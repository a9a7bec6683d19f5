"""The line of each request in the log: how it ended, and why it failed."""

from __future__ import annotations

import logging
import time
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: The largest number of lines in a second for answers 5xx, and the same for answers 4xx. In an overload thousands of
#: requests fail for one reason, and a client can cause a 4xx as often as it likes. With a larger number, writing the
#: log slows the replica down then; with a smaller one, the lines of other failures may be missing.
MOST_LINES_PER_S = 20


class RequestLog:
    """Logs a 5xx as a warning and a 4xx as an info, each up to MOST_LINES_PER_S, and everything else for debugging."""

    def __init__(self) -> None:
        # Two budgets, so that clients that cause 4xx cannot keep a 5xx out of the log.
        self._failure_budget, self._refusal_budget = _LineBudget(MOST_LINES_PER_S), _LineBudget(MOST_LINES_PER_S)

    def write(
        self,
        method: str,
        route: str,
        status: int,
        detail: str,
        duration_s: float | None = None,
        *,
        is_logged_elsewhere: bool = False,
    ) -> None:
        """Log a request by its route, because its path may name a person.

        An error that `is_logged_elsewhere` has another line in the log, so this line is only for debugging.
        """
        budget: _LineBudget | None = None  # None: any number of lines for debugging may be written
        level = logging.DEBUG
        if status >= 400 and not is_logged_elsewhere:
            budget, level = (
                (self._failure_budget, logging.WARNING) if status >= 500 else (self._refusal_budget, logging.INFO)
            )
        if not log.is_enabled_for(level) or (budget is not None and not budget.allows(time.monotonic())):
            return
        facts: dict[str, Any] = {"method": method, "route": route, "status": status}
        if duration_s is not None:
            facts["ms"] = round(duration_s * 1000, 1)
        if detail:
            facts["detail"] = detail
        if budget is not None and budget.suppressed_count:
            facts["suppressed"] = budget.take_suppressed()
        log.log(level, "request", **facts)


class _LineBudget:
    """Allows up to `most_per_s` lines in each second, and counts those that it does not allow."""

    def __init__(self, most_per_s: int) -> None:
        #: how many lines were not allowed since the last `take_suppressed`
        self.suppressed_count = 0
        self._most_per_s = most_per_s
        self._current_second = 0
        self._count_in_second = 0

    def allows(self, now_s: float) -> bool:
        """Return whether one more line is allowed at this time. Count it as suppressed if it is not."""
        if int(now_s) != self._current_second:
            self._current_second, self._count_in_second = int(now_s), 0
        self._count_in_second += 1
        if self._count_in_second > self._most_per_s:
            self.suppressed_count += 1
            return False
        return True

    def take_suppressed(self) -> int:
        """Return how many lines were not allowed since the last call."""
        suppressed_count, self.suppressed_count = self.suppressed_count, 0
        return suppressed_count
