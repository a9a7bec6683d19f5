"""What can go wrong in a mesh, as sentences a user can read.

Every error has a `code` that travels on the wire (a reply's `status`), so that the caller in another process
raises the same class the worker raised. Facts travel as attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MeshError(Exception):
    """Something in the mesh did not work."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str | None = None, /, **facts: Any) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        self.facts: dict[str, Any] = facts
        super().__init__(self.detail)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a new try makes sense; None where nobody knows."""
        value = self.facts.get("retry_after")
        return None if value is None else float(value)


class Unavailable(MeshError):
    """The mesh cannot be reached: Redis is away, or this replica has no lease. Try again."""

    code = "unavailable"


class Busy(MeshError):
    """Too much work is in progress; try again later."""

    code = "busy"


class NoReplica(MeshError):
    """No live replica has the class or database that was asked for."""

    code = "no-replica"


class DeadlineExceeded(MeshError):
    """The answer did not come before the deadline."""

    code = "deadline"


class Incomplete(MeshError):
    """Not every live database answered."""

    code = "incomplete"

    @property
    def missing(self) -> list[int]:
        """Numbers of the databases that did not answer."""
        return list(self.facts.get("missing", ()))


class GivenUp(MeshError):
    """The request was delivered several times, no replica survived it or finished it, and it was given up."""

    code = "given-up"


class Contended(MeshError):
    """Other requests changed the same key again and again, and this one never got through."""

    code = "contended"

    @classmethod
    def at(cls, key: str, conflicts: int) -> Contended:
        """Name the key and say what helps."""
        return cls(
            f"{key} changed {conflicts} times while this request was handled; "
            "use incrby(), or send such requests to one Database",
            key=key,
            conflicts=conflicts,
            retry_after=1,
        )

    @property
    def key(self) -> str:
        """The contended key."""
        return str(self.facts.get("key", ""))

    @property
    def conflicts(self) -> int:
        """How many conflicts the request met."""
        return int(self.facts.get("conflicts", 0))


class Refused(MeshError):
    """The handler refused the request; `facts` say why."""

    code = "refused"


class Cancelled(MeshError):
    """Nobody waits for the answer any more."""

    code = "cancelled"


class InvalidBody(MeshError):
    """The body of the request cannot be sent."""

    code = "invalid-body"


class LeaseLost(MeshError):
    """The lease has ended, or another replica holds it; join again for a new one."""

    code = "lease-lost"


class SetupError(MeshError):
    """The mesh cannot work with this server or these credentials."""

    code = "setup"


class WrongCredentials(SetupError):
    """Redis refuses the user or the password."""


class ServerTooOld(SetupError):
    """The server is older than 7.0, which the mesh needs."""


class IsolationUnavailable(SetupError):
    """These credentials may not manage Redis users, so the server cannot enforce isolation.

    Set MESH_ISOLATION=prefix to go on with key prefixes alone.
    """


_BY_CODE: dict[str, type[MeshError]] = {
    cls.code: cls
    for cls in (
        Unavailable,
        Busy,
        NoReplica,
        DeadlineExceeded,
        Incomplete,
        GivenUp,
        Refused,
        Cancelled,
        Contended,
        InvalidBody,
        LeaseLost,
    )
}


def from_wire(code: str, detail: str, facts: dict[str, Any]) -> MeshError:
    """The error that a reply with this status stands for."""
    return _BY_CODE.get(code, MeshError)(detail, **facts)
