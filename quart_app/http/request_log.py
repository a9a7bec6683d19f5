"""The line of each request in the log: how it ended, and why it failed."""

from __future__ import annotations

import logging
import time
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: The largest number of lines in a second for answers 5xx, and for answers 4xx. In an overload thousands of requests
#: fail for one reason, and a client can cause a 4xx as often as it likes.
MOST_LINES_PER_S = 20


class RequestLog:
    """Logs a 5xx as a warning and a 4xx as an info, each up to a limit, and everything else for debugging."""

    def __init__(self) -> None:
        self._failures, self._refusals = _RateLimit(MOST_LINES_PER_S), _RateLimit(MOST_LINES_PER_S)

    def write(
        self,
        method: str,
        route: str,
        status: int,
        detail: str,
        seconds: float | None = None,
        *,
        is_logged_elsewhere: bool = False,
    ) -> None:
        """Log a request by its route, because its path may name a person.

        An error that `is_logged_elsewhere` has another line in the log, so this line is only for debugging.
        """
        limit: _RateLimit | None = None
        level = logging.DEBUG
        if status >= 400 and not is_logged_elsewhere:
            limit, level = (self._failures, logging.WARNING) if status >= 500 else (self._refusals, logging.INFO)
        if not log.is_enabled_for(level) or (limit is not None and not limit.allows(time.monotonic())):
            return
        facts: dict[str, Any] = {"method": method, "route": route, "status": status}
        if seconds is not None:
            facts["ms"] = round(seconds * 1000, 1)
        if detail:
            facts["detail"] = detail
        if limit is not None and limit.suppressed:
            facts["suppressed"] = limit.take_suppressed()
        log.log(level, "request", **facts)


class _RateLimit:
    """Allows up to `most_per_s` events in each second, and counts those that it does not allow."""

    def __init__(self, most_per_s: int) -> None:
        #: events that were not allowed since `take_suppressed`
        self.suppressed = 0
        self._most_per_s = most_per_s
        self._current_second = 0
        self._count_in_second = 0

    def allows(self, now_s: float) -> bool:
        """Return whether one more event is allowed at this time. Count it as suppressed if it is not."""
        if int(now_s) != self._current_second:
            self._current_second, self._count_in_second = int(now_s), 0
        self._count_in_second += 1
        if self._count_in_second > self._most_per_s:
            self.suppressed += 1
            return False
        return True

    def take_suppressed(self) -> int:
        """Return how many events were not allowed since the last call."""
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed
