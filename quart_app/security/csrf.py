"""The check that keeps other sites from acting with the cookies of our users."""

from __future__ import annotations

from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

#: Methods whose requests change nothing, so that no other site gains by sending them.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_foreign(method: str, headers: Headers, allowed_origins: frozenset[str]) -> bool:
    """Return whether a browser sends this request on behalf of another site that is not allowed.

    Of the header Origin only the host is compared, because a proxy may have ended TLS and changed the scheme. Programs
    that are not browsers send neither Origin nor Sec-Fetch-Site. Their requests pass, because such a program does not
    carry the cookies of another user.
    """
    if method in SAFE_METHODS:
        return False
    origin = headers.get("Origin")
    if origin is None:
        # "same-site" is another host of the same domain, which is foreign, too.
        return headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}
    return origin not in allowed_origins and _host(origin) != headers.get("Host", "").lower()


def _host(origin: str) -> str | None:
    """Return the host and port that an Origin header names; None if it names none, as "null" does."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
