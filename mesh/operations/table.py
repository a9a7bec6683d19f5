"""A table of operations and of the state that they share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, get_type_hints, overload

from mesh.errors import InvalidBody, UsageError
from mesh.later.limit import Limit
from mesh.later.retry import Retry
from mesh.later.schedule import MissedPolicy, Schedule, Tick, missed_policy_of
from mesh.operations.codec import StoredCodec, type_name_of
from mesh.operations.definition import define
from mesh.operations.operation import Operation
from mesh.operations.reads import Query
from mesh.operations.state import Field, Hash, Key, Set, SortedSet, Values
from mesh.operations.transaction import Transaction
from mesh.requests.effects import Effects
from mesh.requests.protocol import Request
from mesh.requests.store import Store
from mesh.requests.worker import Handler, HandlerFunction, Worker

# A body, a reply, a stored value, and the name of a hash's field or the id of a value.
B = TypeVar("B")
R = TypeVar("R")
T = TypeVar("T")
K = TypeVar("K", str, int)

_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: Stands for no default. None is not used for it, because None may be a default.
_NO_DEFAULT: Any = object()


class _CommandDecorator(Protocol):
    """The decorator that `@operations.command(name=...)` returns."""

    @overload
    def __call__(self, handler: Callable[[Transaction], Awaitable[R]], /) -> Operation[None, R]: ...
    @overload
    def __call__(self, handler: Callable[[Transaction, B], Awaitable[R]], /) -> Operation[B, R]: ...


class _QueryDecorator(Protocol):
    """The decorator that `@operations.query(name=...)` returns."""

    @overload
    def __call__(self, handler: Callable[[Query], Awaitable[R]], /) -> Operation[None, R]: ...
    @overload
    def __call__(self, handler: Callable[[Query, B], Awaitable[R]], /) -> Operation[B, R]: ...


class Operations:
    """Operations and the state that they share. Names of operations and of keys begin with the name of the table.

    greetings = Operations("greetings")
    total = greetings.value("total", int, 0)        # db{n}:greetings:total

    @greetings.command                              # greetings.put
    async def put(tx: Transaction, body: Greet) -> Greeted: ...
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME_PATTERN.fullmatch(name):
            raise UsageError(f'operations have a name like "greetings", not {name!r:.100}')
        self.name = name
        #: name -> operation
        self.operations: dict[str, Operation[Any, Any]] = {}
        #: the handlers of these operations as a `mesh.raw.Worker`: `join` gives it to the replica, which runs them
        self.worker = Worker()
        #: (is shared, name of a key) -> what it is, such as "set of str"
        self._descriptions: dict[tuple[bool, str], str] = {}

    # State

    @overload
    def value(self, name: str, kind: type[T], *, shared: bool = ...) -> Field[T]: ...
    @overload
    def value(self, name: str, kind: type[T], default: T, *, shared: bool = ...) -> Key[T]: ...
    def value(self, name: str, kind: Any, default: Any = _NO_DEFAULT, *, shared: bool = False) -> Any:
        """Define a value: a Key if it has a `default`, else a Field.

        Reading an absent value gives the default of a Key, and None for a Field. Both are read and written in the same
        way. A `shared` value is stored once for all replicas. Any other is stored once in each database.
        """
        description = f"value of {type_name_of(kind)}" + (
            "" if default is _NO_DEFAULT else f" with the default {default!r:.100}"
        )
        key = self._define_key(name, description, shared)
        if default is _NO_DEFAULT:
            return Field(key, StoredCodec(kind), shared)
        return Key(key, StoredCodec(kind), shared, default)

    def values(self, name: str, ids: type[K], kind: type[T], *, shared: bool = False) -> Values[K, T]:
        """Define values of one type. Each value has its own key, and may have a ttl. `ids` is the type of the ids."""
        if ids not in (str, int):
            raise UsageError(f"values are named by str or int, not by {type_name_of(ids)}")
        return Values(self._define_key(name, f"family of {type_name_of(kind)}", shared), ids, StoredCodec(kind), shared)

    def hash(self, name: str, fields: type[K], kind: type[T], *, shared: bool = False) -> Hash[K, T]:
        """Define a hash. `fields` is the type of its fields' names: str or int. `kind` is the type of its values."""
        if fields not in (str, int):
            raise UsageError(f"the fields of a hash are named by str or int, not by {type_name_of(fields)}")
        return Hash(self._define_key(name, f"hash of {type_name_of(kind)}", shared), fields, StoredCodec(kind), shared)

    def set(self, name: str, kind: type[T], *, shared: bool = False) -> Set[T]:
        """Define a set."""
        return Set(self._define_key(name, f"set of {type_name_of(kind)}", shared), StoredCodec(kind), shared)

    def sorted_set(self, name: str, kind: type[T], *, shared: bool = False) -> SortedSet[T]:
        """Define a sorted set: members in the order of their scores."""
        return SortedSet(
            self._define_key(name, f"sorted set of {type_name_of(kind)}", shared), StoredCodec(kind), shared
        )

    def _define_key(self, name: str, description: str, shared: bool) -> str:
        """Return a key's full name, and remember its description. Raises UsageError."""
        if not isinstance(name, str) or not name or any(character.isspace() for character in name):
            raise UsageError(f"a key is named by text without spaces, not by {name!r:.100}")
        # One key may be defined several times, as long as the definitions agree on its type and default.
        known_description = self._descriptions.setdefault((shared, name), description)
        if known_description != description:
            raise UsageError(f"{self.name}:{name} is a {known_description}, and cannot be a {description}, too")
        return f"{self.name}:{name}"

    # Operations

    @overload
    def command(self, handler: Callable[[Transaction, B], Awaitable[R]], /) -> Operation[B, R]: ...
    @overload
    def command(self, handler: Callable[[Transaction], Awaitable[R]], /) -> Operation[None, R]: ...
    @overload
    def command(
        self, *, name: str = ..., retry: Retry | None = ..., limit: Limit | None = ...
    ) -> _CommandDecorator: ...
    def command(
        self, handler: Any = None, *, name: str = "", retry: Retry | None = None, limit: Limit | None = None
    ) -> Any:
        """Register a handler that has an effect. The operation is named `name`, or else like the function.

        `retry` says how often, and after which pauses, a request is tried again if the handler raised an exception; the
        request holds no worker meanwhile. `limit` says how many of its requests may run at once, or in a time.
        """
        if retry is not None and not isinstance(retry, Retry):
            raise UsageError(f"command(retry=) takes a Retry(...), not {retry!r:.100}")
        if handler is None:
            return lambda handler: self._new_operation(handler, name, Transaction, retry, limit)
        return self._new_operation(handler, name, Transaction, retry, limit)

    @overload
    def query(self, handler: Callable[[Query, B], Awaitable[R]], /) -> Operation[B, R]: ...
    @overload
    def query(self, handler: Callable[[Query], Awaitable[R]], /) -> Operation[None, R]: ...
    @overload
    def query(self, *, name: str = ...) -> _QueryDecorator: ...
    def query(self, handler: Any = None, *, name: str = "") -> Any:
        """Register a handler that only reads.

        A replica runs the commands that are sent to its database one at a time, in their order. Queries without a
        command between them run at the same time.
        """
        if handler is None:
            return lambda handler: self._new_operation(handler, name, Query)
        return self._new_operation(handler, name, Query)

    def every(
        self,
        cron: str,
        *,
        tz: str = "UTC",
        each: bool = False,
        missed: str = MissedPolicy.ONCE,
        overlap: bool = False,
        name: str = "",
        limit: Limit | None = None,
    ) -> Callable[[Callable[[Transaction, Tick], Awaitable[None]]], Operation[Tick, None]]:
        """Register a command that runs by itself, at the times of a cron expression in a time zone.

        With `each` the command runs in every live database, else on one replica. `missed` says what becomes of times
        that passed while no replica was live: "once" (one run for all of them), "skip" (no run), or "all" (one run for
        each). Without `overlap` a run is left out if the run before it has not ended. `limit` says how many runs there
        may be at once, or in a time. Raises UsageError.
        """
        if not isinstance(cron, str):
            raise UsageError(f'write @operations.every("0 4 * * *"), with a cron expression, not {cron!r:.100}')
        schedule = Schedule(cron, tz, each, missed_policy_of(missed), overlap)

        def decorate(handler: Callable[[Transaction, Tick], Awaitable[None]]) -> Operation[Tick, None]:
            op: Operation[Tick, None] = self.command(name=name, limit=limit)(handler)
            if (op.body, op.reply) != (Tick, type(None)):
                raise UsageError(
                    f"{_full_name(handler)}: "
                    "a command with a schedule takes (tx: Transaction, tick: Tick) and returns None"
                )
            self.worker.schedules[op.name] = schedule
            return op

        return decorate

    @overload
    def implements(
        self, op: Operation[None, R], /
    ) -> Callable[[Callable[[Transaction], Awaitable[R]] | Callable[[Query], Awaitable[R]]], Operation[None, R]]: ...
    @overload
    def implements(
        self, op: Operation[B, R], /
    ) -> Callable[[Callable[[Transaction, B], Awaitable[R]] | Callable[[Query, B], Awaitable[R]]], Operation[B, R]]: ...
    def implements(self, op: Any, /) -> Any:
        """Register the handler of an operation that was defined without a handler.

        The type of the handler's first parameter decides whether the operation is a command or a query. The contract
        names the limit. There is no `retry` here: only `command` takes one.
        """
        if not isinstance(op, Operation):
            raise UsageError(
                f"write @operations.implements(op), where op = Operation(name, Body, Reply), not {op!r:.100}"
            )

        def decorate(handler: Any) -> Operation[Any, Any]:
            first_parameter_type, body_type, reply_type = _types_of(handler)
            if (body_type, reply_type) != (op.body, op.reply):
                raise UsageError(f"the types of {_full_name(handler)} are not those of {op!r}")
            self._add_handler(op, handler, first_parameter_type)
            return op

        return decorate

    def _new_operation(
        self, handler: Any, name: str, wanted_type: type, retry: Retry | None = None, limit: Limit | None = None
    ) -> Operation[Any, Any]:
        """Register a handler whose first parameter must be of the type `wanted_type`: Transaction or Query."""
        if not isinstance(name, str):
            raise UsageError(f'an operation is named by text, such as name="put", not by {name!r:.100}')
        first_parameter_type, body_type, reply_type = _types_of(handler)
        if first_parameter_type is not wanted_type:
            noun, other_noun = ("command", "query") if wanted_type is Transaction else ("query", "command")
            raise UsageError(
                f"{_full_name(handler)}: a {noun} gets a {wanted_type.__name__}, and this one asks for a "
                f"{type_name_of(first_parameter_type)}; change the annotation, or make it a {other_noun}"
            )
        op: Operation[Any, Any] = Operation(
            f"{self.name}.{name or handler.__name__}", body_type, reply_type, limit=limit
        )
        self._add_handler(op, handler, wanted_type, retry)
        return op

    def _add_handler(
        self, op: Operation[Any, Any], handler: Any, first_parameter_type: type, retry: Retry | None = None
    ) -> None:
        """Give the worker a `Handler`: a record of an operation and of the function that calls its handler."""
        is_command = first_parameter_type is Transaction
        if op.limit is not None and not is_command:
            raise UsageError(f"{op.name} is a query, and only a command can have a limit")
        handle = _command_handle(handler, op) if is_command else _query_handle(handler, op)
        # `define` is called when the replica joins. The errors of the service, which it lists, may not be known before:
        # a module may define them after its handlers.
        try:
            self.worker.add(
                Handler(
                    op.name,
                    handle,
                    is_command,
                    op.decode_body,
                    op.encode_reply,
                    retry=retry,
                    limit=op.limit,
                    define=lambda: define(op, self.name, handler),
                )
            )
        except ValueError as error:  # the operation has a handler already
            raise UsageError(str(error)) from error
        op.handler = handler
        self.operations[op.name] = op


def _full_name(handler: Any) -> str:
    """Return the module and name of a handler, for the texts of errors."""
    return f"{getattr(handler, '__module__', '')}.{getattr(handler, '__qualname__', repr(handler))}"


def _types_of(handler: Any) -> tuple[Any, Any, Any]:
    """Return the types in a handler's signature: Transaction or Query, body or None, reply. Raises UsageError."""
    if not inspect.iscoroutinefunction(handler):
        raise UsageError(f"{_full_name(handler)}: a handler is an `async def` function")
    parameters = [*inspect.signature(handler).parameters.values()]
    names = [parameter.name for parameter in parameters]
    all_are_plain = all(
        parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
        for parameter in parameters
    )
    if not all_are_plain or not 1 <= len(names) <= 2:
        raise UsageError(f"{_full_name(handler)}: a handler takes (tx) or (tx, body), without defaults")
    try:
        hints = get_type_hints(handler)
    except NameError as error:
        raise UsageError(
            f"{_full_name(handler)}: {error}; define its types at the top level of a module, before the handler"
        ) from error
    untyped_names = [name for name in [*names, "return"] if name not in hints]
    if untyped_names:
        raise UsageError(f"{_full_name(handler)}: write the type of {', '.join(untyped_names)}; the mesh needs it")
    first_parameter_type, *body_type_if_any = (hints[name] for name in names)
    if first_parameter_type not in (Transaction, Query):
        raise UsageError(
            f"{_full_name(handler)}: the first parameter is a mesh.Transaction or a mesh.Query, "
            f"not {type_name_of(first_parameter_type)}"
        )
    return first_parameter_type, body_type_if_any[0] if body_type_if_any else None, hints["return"]


def _command_handle(handler: Any, op: Operation[Any, Any]) -> HandlerFunction:
    """Return the function that the runner calls for each request of a command. It returns the handler's coroutine.

    It is no `async def`: a second coroutine around that of the handler would cost each request time.
    """
    if op.body is None:
        return lambda request, store, effects: handler(Transaction(store, request, effects))

    def handle(request: Request, store: Store, effects: Effects) -> Awaitable[Any]:
        body = request.body
        if body.__class__ is InvalidBody:  # `Operation.decode_body` returns this error for a wrong body
            raise body
        coroutine: Awaitable[Any] = handler(Transaction(store, request, effects), body)
        return coroutine

    return handle


def _query_handle(handler: Any, op: Operation[Any, Any]) -> HandlerFunction:
    """Return the function that the runner calls for each request of a query. It returns the handler's coroutine."""
    if op.body is None:
        return lambda request, store, effects: handler(Query(store, request))

    def handle(request: Request, store: Store, effects: Effects) -> Awaitable[Any]:
        body = request.body
        if body.__class__ is InvalidBody:  # `Operation.decode_body` returns this error for a wrong body
            raise body
        coroutine: Awaitable[Any] = handler(Query(store, request), body)
        return coroutine

    return handle
