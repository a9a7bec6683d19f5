"""What keeps pages of other sites away from our answers: the host names that we answer to, and headers of every answer.

A page of another site can let its own name resolve to this machine. The browser then takes our answers for answers of
that site and shows them to the page (DNS rebinding). The page needs a name that its owner controls, so every name that
nobody can register is safe, and so is every address.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache

from werkzeug.datastructures import Headers

from quart_app.http.clients import is_address
from quart_app.http.problems import Problem
from quart_app.settings import AppSettings, split_at_commas

#: The header that says what a page may load. Our HTML pages have their own policy in place of the one in
#: `PROTECTIVE_HEADERS`.
POLICY_HEADER = "Content-Security-Policy"
#: Headers of every answer. They tell a browser to believe the content type, and neither to run the answer nor to show
#: it in a frame.
PROTECTIVE_HEADERS = {"X-Content-Type-Options": "nosniff", POLICY_HEADER: "default-src 'none'; frame-ancestors 'none'"}
#: Ends of names that no registry gives to anybody (RFC 6761, RFC 6762, RFC 8375, and ICANN for `internal`).
LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".test")
_HOST_HEADER = re.compile(r"(?:\[(?P<address>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:]*))(?::\d{1,5})?")
#: One entry of the setting ALLOWED_HOSTS: a host name, or the address of a site in the form of a Caddyfile.
_ALLOWED_ENTRY = re.compile(r"(?:https?://)?(?P<name>[^/:]*)(?::\d+)?/?")


def protect(headers: Headers) -> None:
    """Add `PROTECTIVE_HEADERS` to an answer. If the answer has a policy already, that one stays."""
    # Not `POLICY_HEADER in headers`: to find out that a header is not there, Werkzeug raises an exception inside.
    has_policy = any(name == POLICY_HEADER for name, _ in headers)
    for name, value in PROTECTIVE_HEADERS.items():
        if name != POLICY_HEADER or not has_policy:
            headers.add(name, value)


class AllowedHosts:
    """The host names that this replica answers to."""

    def __init__(self, settings: AppSettings) -> None:
        entries = [_ALLOWED_ENTRY.fullmatch(entry.lower()) for entry in split_at_commas(settings.allowed_hosts)]
        names = {entry["name"] for entry in entries if entry is not None and entry["name"]}
        self._allows_any = "*" in names
        #: `.example.org` for each name `*.example.org`
        self._allowed_suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        # Other replicas and operators use this machine's own names.
        self._allowed_names = names | {settings.advertise_host.lower(), socket.gethostname().lower()}
        # Clients choose the names of hosts, so the number of kept answers is bounded. With fewer, more names are
        # checked again; with more, the kept ones take more memory.
        self._is_allowed_cached = lru_cache(maxsize=1024)(self._is_allowed_uncached)

    # `Application` calls this for each request.
    def check(self, host: str) -> None:
        """Raise Problem (421) if a request with this Host header is meant for another server."""
        if not self._is_allowed_cached(host):
            raise Problem(421, f"this server does not answer to the host {host[:200]!r}; ALLOWED_HOSTS can add it")

    def _is_allowed_uncached(self, host: str) -> bool:
        match = _HOST_HEADER.fullmatch(host.lower())
        if match is None:
            return False
        name = (match["name"] or "").removesuffix(".")  # a full name in DNS may end with a dot
        return (
            self._allows_any
            or match["address"] is not None
            or "." not in name  # nobody can register a name without a dot
            or name in self._allowed_names
            or name.endswith(LOCAL_SUFFIXES)
            or (bool(self._allowed_suffixes) and name.endswith(self._allowed_suffixes))
            or is_address(name)  # of IPv4, because brackets enclose those of IPv6
        )
