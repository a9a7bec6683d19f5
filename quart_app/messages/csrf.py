"""Other sites must not act with our visitors' cookies."""

from __future__ import annotations

from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_foreign(method: str, headers: Headers, allowed: frozenset[str]) -> bool:
    """Whether a browser sends this on behalf of another site.

    Only the host is compared: a proxy may have taken the encryption off, and so the scheme.
    Programs that are no browsers send neither header, and have no cookies of others to abuse.
    """
    if method in SAFE_METHODS:
        return False
    origin = headers.get("Origin")
    if origin is None:
        return headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}
    return origin not in allowed and _host(origin) != headers.get("Host", "").lower()


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
