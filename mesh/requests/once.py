"""Idempotency keys: one request, and one answer, for all calls of an operation with one key."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta

from mesh.errors import (
    Busy,
    Cancelled,
    Contended,
    DeadlineExceeded,
    GivenUp,
    Incomplete,
    InvalidReply,
    KeyReused,
    LeaseLost,
    MeshError,
    NoReplica,
    Paused,
    Unavailable,
    Unserved,
    UsageError,
)

#: How long the answer to a call with a key is kept, if the call does not say. It is the default of the arguments
#: `keep=`. A longer time takes more memory of Redis; after it, a repeated call has a second effect.
KEEP = timedelta(hours=24)
#: The longest time for which an answer can be kept: until it ends, each answer takes memory of Redis.
LONGEST_KEEP = timedelta(days=365)
#: A key becomes a word for scripts and a part of a Redis key's name, and people can read it there. So it has no spaces
#: and is short. A caller with a longer text takes its SHA-256: 64 hexadecimal digits.
_KEY_PATTERN = re.compile(r"[!-~]{1,200}")
_ONE_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Once:
    """The idempotency key of one request (its effect happens once), and how long the answer is kept, in ms."""

    key: str
    keep_ms: int

    @classmethod
    def of(cls, key: str | None, keep: timedelta) -> Once | None:
        """Return what the arguments `key=` and `keep=` of a call say; None if there is no key. Raises UsageError."""
        if key is None:
            return None
        if not isinstance(key, str) or not _KEY_PATTERN.fullmatch(key):
            raise UsageError(
                f"a key is 1 to 200 visible ASCII characters without spaces, not {key!r:.100}; "
                "take the SHA-256 of anything else"
            )
        if not isinstance(keep, timedelta) or not timedelta(0) < keep <= LONGEST_KEEP:
            raise UsageError(f"keep= is a timedelta such as timedelta(hours=24), at most a year, not {keep!r:.100}")
        return cls(key, max(1, keep // _ONE_MS))  # Redis would delete a key with an expiry of 0 ms at once

    def name(self, op: str) -> str:
        """Return the name of a request to this operation with this key: the same for all requests with the key."""
        return hashlib.sha1(f"{op}:{self.key}".encode(), usedforsecurity=False).hexdigest()

    def options(self, body: str) -> dict[str, str | int]:
        """Return the options of a request with this key and body, as options.lua names them."""
        sha = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
        return {"once": self.key, "sha": sha, "keep": self.keep_ms}


def key_reused_error(key: str) -> KeyReused:
    """Return the error for a key that was used with another body."""
    return KeyReused(f"the idempotency key {key} was used with another body; give each request its own key")


#: Errors that free the key. After some of them a later call may succeed. The others show a mistake in the code of the
#: handler or of the mesh, and a later call runs when the mistake is corrected.
_ERRORS_THAT_FREE_KEYS = (
    Busy, Cancelled, Contended, DeadlineExceeded, GivenUp, Incomplete, InvalidReply, LeaseLost, NoReplica, Paused,
    Unavailable, Unserved, UsageError,
)  # fmt: skip


def is_kept(error: MeshError) -> bool:
    """Return whether an error is kept as the answer to all calls with the key. If not, the key is free again.

    `Effects.refuse` asks this when a handler has raised the error, or the runner refuses the request. The request then
    has no effect but this answer. A request that is buried, expires or is cancelled always frees its key. An error with
    a `retry_after` is not kept, because a later call may succeed.
    """
    return error.retry_after is None and not isinstance(error, _ERRORS_THAT_FREE_KEYS)
