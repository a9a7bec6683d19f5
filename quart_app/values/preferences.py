"""What the client prefers (RFC 7240): `Prefer: respond-async, wait=10`."""

from __future__ import annotations

import re

from quart import request

_ASYNC = re.compile(r"(?:^|[,;\s])respond-async(?:$|[,;\s])")
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})")


def _preferences() -> str:
    """Return all headers that name preferences, as one."""
    return ",".join(request.headers.getlist("Prefer"))


def is_async() -> bool:
    """Return whether the client does not want to wait for the result."""
    return _ASYNC.search(_preferences()) is not None


def wait_ms() -> int | None:
    """Return how long the client will wait, in ms; None if it does not say."""
    asked = _WAIT.search(_preferences())
    return None if asked is None else int(asked[1]) * 1000
