"""One operation: a name, the type of its body, the type of its reply. Calls get the operation itself, not its name.

A contract for a caller in another program has no handler:

    put = Operation("greetings.put", Greet, Greeted)      # in a package that both programs have
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from mesh.errors import InvalidBody, InvalidReply, UsageError
from mesh.later.limit import Limit
from mesh.operations.codec import DECODE_ERRORS, Codec, class_and_value, field_names_of, is_object_type, type_name_of
from mesh.requests.protocol import MOST_BODY

if TYPE_CHECKING:
    from mesh.testing.alone import Ran

B = TypeVar("B")
R = TypeVar("R")

_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: The JSON that is sent as the body if an operation has no body.
NO_BODY = b"{}"


class Operation(Generic[B, R]):
    """A named request with its types. `handler` is the function itself; a contract has none."""

    @overload
    def __init__(
        self: Operation[None, R], name: str, body: None, reply: type[R], *, limit: Limit | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self: Operation[None, None], name: str, body: None, reply: None, *, limit: Limit | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self: Operation[B, None], name: str, body: type[B], reply: None, *, limit: Limit | None = ...
    ) -> None: ...
    @overload
    def __init__(self, name: str, body: type[B], reply: type[R], *, limit: Limit | None = ...) -> None: ...
    def __init__(self, name: str, body: Any, reply: Any, *, limit: Limit | None = None) -> None:
        if not isinstance(name, str) or not _NAME_PATTERN.fullmatch(name):
            raise UsageError(f'an operation has a name like "greetings.put", not {name!r:.100}')
        self.name = name
        # `body` and `reply` are types. In the types of a handler, the annotation None is NoneType. In a contract it is
        # None.
        self.body = None if body is type(None) else body
        self.reply = type(None) if reply is None else reply
        self.handler: Callable[..., Awaitable[Any]] | None = None
        if self.body is not None and not is_object_type(self.body):
            raise UsageError(
                f"the body of {name} is {type_name_of(body)}; a body is an object with names: "
                "a msgspec Struct, a dataclass, a pydantic model or a TypedDict"
            )
        #: how many of its requests may run at once, or in a time
        self.limit = _checked_limit(limit, name, self.body)
        self._body_codec: Codec[Any] | None = None if self.body is None else Codec(self.body)
        self._reply_codec: Codec[Any] = Codec(self.reply)

    def __repr__(self) -> str:
        body = "None" if self.body is None else type_name_of(self.body)
        return f"<Operation {self.name}: {body} -> {type_name_of(self.reply)}>"

    if not TYPE_CHECKING:  # a type checker reports this mistake only if it does not see the method

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            raise UsageError(
                f"{self.name} is called over a mesh: await mesh.call({self.name.rpartition('.')[2]}, ...); "
                "a test can run its handler alone: await op.run(...)"
            )

    def limit_of(self, body: Any) -> str:
        """Return the limit of a request with this body, as limits.lua reads it, or "". Raises InvalidBody."""
        return "" if self.limit is None else self.limit.words(self.name, body)

    def encode_body(self, body: B | None) -> bytes:
        """Return the JSON of a request's body. Raises InvalidBody."""
        codec = self._body_codec
        if codec is None:
            if body is not None:
                raise InvalidBody(f"{self.name} takes no body, and was called with {body!r:.100}")
            return NO_BODY
        # Most bodies are of the usual class. Then `accepts`, which takes longer, is not called.
        if body.__class__ is not codec.usual_class and not codec.accepts(body):
            type_name = type_name_of(self.body)
            what_came = "and there is none" if body is None else f"not {class_and_value(body)}"
            raise InvalidBody(f"the body of {self.name} is a {type_name}, {what_came}; write {type_name}(...)")
        try:
            return codec.encode(body)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidBody(f"the body of {self.name} cannot be written as JSON: {error}") from error

    def decode_body(self, text: str) -> Any:
        """Return a request's body, or an InvalidBody that says what is wrong with it.

        The InvalidBody is raised later, where the handler would be called, so that the caller gets it as the answer.
        """
        if self._body_codec is None:
            return None
        try:
            return self._body_codec.decode(text)
        except DECODE_ERRORS as error:
            mistake = self._body_codec.explain(error)
            return InvalidBody(
                f"the body of {self.name} is not a {type_name_of(self.body)}: {mistake}", path=mistake.path
            )

    def encode_reply(self, reply: R) -> bytes:
        """Return the JSON of a reply. Raises InvalidReply."""
        codec = self._reply_codec
        if reply.__class__ is not codec.usual_class and not codec.accepts(reply):
            raise InvalidReply(
                f"{self.name} answers {type_name_of(self.reply)}, and its handler returned "
                f"{class_and_value(reply)}; correct the annotation or the return"
            )
        try:
            reply_json = codec.encode(reply)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidReply(f"the reply of {self.name} cannot be written as JSON: {error}") from error
        # All other bodies are checked by `protocol.encode_body`. This JSON is sent without a further check.
        if len(reply_json) > MOST_BODY:
            raise InvalidReply(
                f"the reply of {self.name} is {len(reply_json)} bytes of JSON; at most {MOST_BODY} can be sent"
            )
        return reply_json

    def decode_reply(self, text: str) -> R:
        """Return the reply that a JSON text holds. Raises ValueError if it is of another type."""
        try:
            reply: R = self._reply_codec.decode(text)
        except DECODE_ERRORS as error:
            raise ValueError(
                f"{self.name} answers {type_name_of(self.reply)}, not this: {self._reply_codec.explain(error)}"
            ) from None
        return reply

    @overload
    async def run(
        self: Operation[None, R], *, state: Mapping[Any, Any] | None = ..., database: int = ...
    ) -> Ran[R]: ...
    @overload
    async def run(self, body: B, *, state: Mapping[Any, Any] | None = ..., database: int = ...) -> Ran[R]: ...
    async def run(self, body: Any = None, *, state: Mapping[Any, Any] | None = None, database: int = 1) -> Ran[R]:
        """Run the handler alone, in a test, without a mesh. `state` has the stored values: key or field -> value.

        See docs/testing.md.
        """
        # The import is not at the top, because `mesh.testing.alone` imports this module, and only tests need it.
        from mesh.testing.alone import run

        return await run(self, body, state or {}, database)


def _checked_limit(limit: Limit | None, name: str, body: Any) -> Limit | None:
    """Return the limit. Raises UsageError if `Limit.by` names a field that the operation's body does not have."""
    if limit is None:
        return None
    if not isinstance(limit, Limit):
        raise UsageError(f"limit= takes a Limit(...), not {limit!r:.100}")
    fields = frozenset[str]() if body is None else field_names_of(body)
    if limit.by and limit.by not in fields:
        known_names = ", ".join(sorted(fields)) or "no fields that are known"
        raise UsageError(f"{name}: Limit(by={limit.by!r}) names no field of its body, which has {known_names}")
    return limit
