"""What a client prefers (RFC 7240), as `Prefer: respond-async, wait=10` says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from werkzeug.http import parse_list_header, unquote_header_value

#: A longer header is ignored: to parse 30 KB holds the event loop for 10 ms.
MAX_HEADER_LENGTH = 1000
#: A `wait` of more digits is ignored: no client waits for 30 years.
MAX_WAIT_DIGITS = 9


def preferences(headers: Iterable[str]) -> dict[str, str]:
    """Return the preferences that the `Prefer` headers of a request name, in lower case, with their values.

    A preference without a value gets "". If a name comes twice, its first value counts. Parameters are dropped, because
    no preference that we know has any.
    """
    preferred: dict[str, str] = {}
    for item in (item for header in headers if len(header) <= MAX_HEADER_LENGTH for item in parse_list_header(header)):
        name, _, value = item.partition(";")[0].partition("=")
        preferred.setdefault(name.strip().lower(), unquote_header_value(value.strip()))
    return preferred


def preferred_wait_s(preferred: Mapping[str, str]) -> int | None:
    """Return how many seconds the client will wait; None without a `wait` in the form of RFC 7240."""
    text = preferred.get("wait", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_WAIT_DIGITS else None
