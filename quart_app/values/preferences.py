"""What the client of a request about values prefers: `Prefer: respond-async, wait=10`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from quart import request

from quart_app.http.preferences import preferred_wait_s
from quart_app.http.problems import Problem
from quart_app.http.request import HttpRequest

#: What a client may do about a missed deadline, by the method of its request. It is added to an error text.
ADVICE = {
    "GET": "; ask for more time with Prefer: wait=N (seconds)",
    "POST": "; ask for more time with Prefer: wait=N (seconds), or for a job with Prefer: respond-async",
}


def _read_preferences() -> Mapping[str, str]:
    """Return the preferences of the header Prefer by name; one without a value has ""."""
    # `Application.request_class` makes each request an HttpRequest.
    return cast("HttpRequest", request).preferred


def is_async() -> bool:
    """Return whether the client does not want to wait for the result."""
    return _read_preferences().get("respond-async") == ""


def is_strict() -> bool:
    """Return whether the client prefers an error to an answer that is not complete."""
    return _read_preferences().get("handling", "").lower() == "strict"


def read_wait_ms() -> int | None:
    """Return how long the client will wait, in ms; None if it does not say."""
    seconds = preferred_wait_s(_read_preferences())
    return None if seconds is None else seconds * 1000


def with_advice(problem: Problem) -> Problem:
    """Return the problem. If a deadline was missed, add to its text how to ask for more time."""
    if problem.status == 504:  # the status of DeadlineExceeded
        problem.detail += ADVICE.get(request.method, "")
    return problem
