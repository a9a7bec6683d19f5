"""The errors of the mesh. The first line of a class's docstring is what a user reads if an error has no other text.

Every error has a `code`. If an error answers a request, its code travels as the `status` of the reply. So the caller in
another process gets an error of the same class. The facts of an error travel, too: `facts` holds
them. Facts that a subclass of Refused annotates are also attributes of its errors.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, get_type_hints

import msgspec


class MeshError(Exception):
    """Something in the mesh did not work."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str | None = None, /, **facts: Any) -> None:
        #: what a user reads
        self.detail = detail or ((type(self).__doc__ or "").strip() or type(self).__name__).splitlines()[0]
        #: what a program reads, such as `retry_after`; the values can be written as JSON
        self.facts: dict[str, Any] = facts
        super().__init__(self.detail)

    @property
    def retry_after(self) -> float | None:
        """After how many seconds a new try makes sense; None if this is not known."""
        value = self.facts.get("retry_after")
        return None if value is None else float(value)


class Unavailable(MeshError):
    """The mesh cannot be reached: Redis is away, or this replica has no lease. Try again."""

    code = "unavailable"


class OlderRelease(Unavailable):
    """An option was used that a live replica of an older release does not know."""

    code = "older-release"


class Busy(MeshError):
    """Too much work is in progress; try again later."""

    code = "busy"


def redis_is_full() -> Busy:
    """Return the error for a request that would store something while Redis has no memory left."""
    # Memory gets free only when keys expire or requests end: a shorter time would only make callers ask more often.
    return Busy("Redis is full: nothing new is stored, reads go on; retry after 5 s", retry_after=5)


class Limited(Busy):
    """The rate of the operation does not allow this request now."""

    code = "limited"


class NoReplica(MeshError):
    """No live replica has the class or database that was asked for."""

    code = "no-replica"


class DeadlineExceeded(MeshError):
    """The answer did not come before the deadline."""

    code = "deadline"


class Incomplete(MeshError):
    """Not every live database answered."""

    code = "incomplete"
    #: the replies that came, by the number of the database. They do not travel: only the caller of the gather has them
    partial: dict[int, Any]

    def __init__(self, detail: str | None = None, /, *, partial: dict[int, Any] | None = None, **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.partial = partial or {}

    @property
    def missing(self) -> list[int]:
        """Numbers of the databases that did not answer. A live one that is late is among them, too."""
        return list(self.facts.get("missing", ()))


class GivenUp(MeshError):
    """The request was delivered several times, but each replica died or did not finish it, so it was given up."""

    code = "given-up"


class Contended(MeshError):
    """Other requests changed the same key again and again, so this request was not done."""

    code = "contended"

    @classmethod
    def at(cls, key: str, conflicts: int) -> Contended:
        """Return the error for a key at which the request met this number of conflicts."""
        return cls(
            f"{key} changed {conflicts} times while this request was handled; "
            "use add() for a counter, or send such requests to one Database",
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
    """The handler refused the request; `facts` say why.

    Some refusals come from no handler: `Unserved`, what `from_wire` returns for an unknown code, and what
    `mesh.control` and `mesh.dead` raise for a wrong name or id.

    For its own refusals a program makes subclasses with a code. The code travels, so the caller gets the same class:

        class NameTaken(Refused, code="greetings.name-taken"):
            name: str

        raise NameTaken(name="ann")
    """

    code = "refused"

    def __init_subclass__(cls, *, code: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if not code:
            return
        owner = _BY_CODE.get(code)
        # The same class statement may run again, for example when its module is loaded again.
        if owner is not None and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"the code {code!r} belongs to {owner.__qualname__}; give {cls.__qualname__} another one")
        cls.code = code
        _BY_CODE[code] = cls

    def __init__(self, detail: str | None = None, /, **facts: Any) -> None:
        super().__init__(detail, **facts)
        fact_names = _fact_names_of(type(self))
        if absent := sorted(fact_names - facts.keys()):
            raise UsageError(f"{type(self).__qualname__} needs {', '.join(f'{name}=' for name in absent)}")
        for name in fact_names:  # facts that no annotation names stay in `facts` only
            setattr(self, name, facts[name])


def _fact_names_of(cls: type[Refused]) -> set[str]:
    """Return the names of the facts that an error of this class must have. The class and its bases annotate them."""
    return {
        name for base in cls.__mro__ if issubclass(base, Refused) and base is not Refused
        for name in inspect.get_annotations(base)
    }  # fmt: skip


class Unserved(Refused):
    """No replica serves the operation: the mesh itself refuses the request, and no handler has seen it."""

    # `class Unserved(Refused, code=…)` would add the class to `_BY_CODE`, which does not exist yet at this line.
    code = "unserved"


class KeyReused(MeshError):
    """The idempotency key was used with another body."""

    code = "key-reused"


class Paused(Busy):
    """An operator has paused the operation."""

    code = "paused"


class Cancelled(MeshError):
    """An operator cancelled the request before it was answered; nothing of it is applied."""

    code = "cancelled"


class InvalidBody(MeshError):
    """The body of the request is not what the operation takes; `path` says where."""

    code = "invalid-body"

    @property
    def path(self) -> str:
        """The place in the body that is wrong, such as `$.items[2].name`; "" if it is the whole body."""
        return str(self.facts.get("path", ""))


class InvalidReply(MeshError):
    """The reply is not what the operation answers: a mistake in its handler, or two releases that disagree."""

    code = "invalid-reply"


class ManyParts(MeshError):
    """Several replicas answered a request that must have only one reply."""

    code = "many-parts"


class UsageError(MeshError):
    """The program uses the mesh in a way that cannot work."""

    code = "usage"


class GuardTooLarge(UsageError):
    """A guarded read returned too many elements to compare them again in the commit."""

    code = "guard-too-large"


class ReadAfterWrite(UsageError):
    """A transaction reads what its own writes have changed, and only the commit knows the outcome."""

    code = "read-after-write"


class LeaseLost(MeshError):
    """The lease has ended, or another replica holds it; join again for a new one."""

    code = "lease-lost"


class SetupError(MeshError):
    """The mesh cannot work with this server or these credentials."""

    code = "setup"


# The kinds of SetupError need no code of their own: they are raised while a process joins, and answer no request.


class WrongCredentials(SetupError):
    """Redis refuses the user or the password."""


class ServerTooOld(SetupError):
    """The server is older than 7.0, which the mesh needs."""


class IsolationUnavailable(SetupError):
    """These credentials may not manage Redis users, so the server cannot enforce isolation.

    Set MESH_ISOLATION=prefix to go on with key prefixes alone.
    """


#: The error class for each code that can be the status of a reply. Subclasses of Refused with a code add themselves.
_BY_CODE: dict[str, type[MeshError]] = {
    cls.code: cls
    for cls in (
        MeshError,
        Unavailable,
        OlderRelease,
        Busy,
        Limited,
        NoReplica,
        DeadlineExceeded,
        Incomplete,
        GivenUp,
        Refused,
        Unserved,
        Cancelled,
        Paused,
        KeyReused,
        Contended,
        InvalidBody,
        InvalidReply,
        ManyParts,
        UsageError,
        GuardTooLarge,
        ReadAfterWrite,
        LeaseLost,
    )
}


def refusals_of(service: str) -> list[tuple[type[MeshError], dict[str, Any]]]:
    """Return the program's own refusals whose code begins with the name of a service, sorted by code.

    Each comes with its facts: a dict from their names to their types. A type is Any if it is not known.
    `mesh.operations.definition.define` puts them into the definition of each operation of the service.
    """
    refusals: list[tuple[type[MeshError], dict[str, Any]]] = []
    for code, cls in sorted(_BY_CODE.items()):
        if issubclass(cls, Refused) and code.startswith(f"{service}."):
            try:
                fact_types = get_type_hints(cls)
            except NameError:  # the class is defined in a function, with types that only this function knows
                fact_types = {}
            refusals.append((cls, {name: fact_types.get(name, Any) for name in sorted(_fact_names_of(cls))}))
    return refusals


def from_wire(code: str, detail: str, facts: dict[str, Any]) -> MeshError:
    """Return the error for a reply whose status is this code.

    If this process does not know the code, or if facts that the class needs are missing, return a Refused with the
    facts that came. This error keeps the code, so another reply that carries the error has the same code.
    """
    cls = _BY_CODE.get(code)
    if cls is not None and issubclass(cls, Refused) and cls is not Refused:
        facts = _with_types(cls, facts)
        if not _fact_names_of(cls) <= facts.keys():
            cls = None
    if cls is not None:
        return cls(detail, **facts)
    error = Refused(detail, **facts)
    vars(error)["code"] = code  # of this error alone, not of the class
    return error


def _with_types(cls: type[Refused], facts: dict[str, Any]) -> dict[str, Any]:
    """Convert facts, which travelled as JSON, to the types that the class annotates.

    Leave out facts that another release wrote differently.
    """
    try:
        fact_types = get_type_hints(cls)
    except NameError:  # as in `refusals_of`
        return facts
    typed_facts = dict(facts)
    for name in _fact_names_of(cls) & facts.keys():
        try:
            # Without `strict`, a text can become a number: the keys of a JSON object are always texts.
            typed_facts[name] = msgspec.convert(facts[name], fact_types[name], strict=False)
        except (msgspec.ValidationError, TypeError):
            del typed_facts[name]
    return typed_facts
