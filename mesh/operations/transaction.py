"""What a handler gets: a `Query` that only reads, or a `Transaction` that reads and writes.

Reads of a transaction are guarded: the commit compares every value that the handler read with the value that is stored
then. A key that was absent must still be absent. If another request has changed such a key meanwhile, the commit has no
effect, and the handler runs again. So an effect never rests on values that have changed since the handler read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

import structlog

from mesh.errors import GuardTooLarge, ReadAfterWrite, UsageError
from mesh.later.due import LONGEST_DELAY, Due, Ticket
from mesh.operations.codec import type_name_of
from mesh.operations.operation import Operation
from mesh.operations.reads import MOST_ELEMENTS, Reads, check_type, checked_key
from mesh.operations.sending import add_send, checked_address, checked_request
from mesh.operations.state import Deletable, Field, Hash, Key, KeyOrField, Set, SortedSet
from mesh.requests.effects import Effects, Writer
from mesh.requests.once import KEEP, Once
from mesh.requests.protocol import Address, Class, Request
from mesh.requests.store import Store

log = structlog.get_logger(__name__)

B = TypeVar("B")
T = TypeVar("T")
K = TypeVar("K", str, int)

#: A guarded read of a value with more characters than this logs a warning. The commit compares long values, too, but
#: the comparison of one costs the server as much as several requests.
LONG_VALUE = 64 * 1024


class _Added:
    """Stands for the value of a key after `add`. Only the commit computes this value, so no read can return it."""


_ADDED = _Added()
#: The keys and fields whose long values were logged: the warning comes once for each in a process.
_warned_about: set[str] = set()
#: A process warns about at most this many keys and fields. Names that contain ids would else fill memory and log.
MOST_WARNED = 1000


class Transaction(Reads):
    """Guarded reads, and the effects that the commit applies, all of them or none."""

    __slots__ = ("_effects", "_known", "_written_collections")

    def __init__(self, store: Store, request: Request, effects: Effects) -> None:
        self._store = store
        self.request = request
        self._effects = effects
        #: (is shared, key, field) -> the text that was read or written there last, or `_ADDED`. Also for commands that
        #: read hashes, sets and sorted sets: (is shared, verb, key, argument, ...) -> the answer. None before the first
        #: entry, because many transactions need no dict.
        self._known: dict[Any, Any] | None = None
        #: (is shared, key) of each hash, set and sorted set that this transaction has written to -> whether the
        #: transaction has deleted the whole of it
        self._written_collections: dict[tuple[bool, str], bool] | None = None

    @property
    def snapshot(self) -> Reads:
        """Reads that are not guarded. They show what is stored, without the writes of this transaction."""
        return Reads(self._store, self.request)

    # Reads

    async def _read_text(self, key: KeyOrField[Any]) -> str | None:
        """Return the text of a key; the commit checks that it has not changed, unless this transaction has set it."""
        known = self._known
        if known is not None and key.location in known:
            return _known_text(key, known[key.location])
        if self._is_in_deleted_hash(key):
            return None
        text = await Reads._read_text(self, key)
        return self._guard(key, text)

    async def _read_texts(self, keys: Sequence[KeyOrField[Any]]) -> list[str | None]:
        """Return the texts of several keys, which are guarded like the text of one (`_read_text`)."""
        known = self._known
        if known is None:
            known = self._known = {}
        unknown_keys = [key for key in keys if key.location not in known and not self._is_in_deleted_hash(key)]
        for key, text in zip(unknown_keys, await Reads._read_texts(self, unknown_keys), strict=True):
            self._guard(key, text)
        # A field of a hash that this transaction has deleted is not in `known`: its text is None.
        return [_known_text(key, known.get(key.location)) for key in keys]

    def _guard(self, key: KeyOrField[Any], text: str | None) -> str | None:
        """Let the commit expect the text that was read, and return the text that the handler gets.

        Another task of the handler may have read or written the same key or field meanwhile. Then its text counts.
        """
        known, location = self._known, key.location
        if known is None:
            known = self._known = {}
        if location not in known:
            known[location] = text
            shared, name, field = location
            self._writer(shared).expect(name, text, field)
            if text is not None and len(text) > LONG_VALUE:
                _warn_once(key, len(text))
        return _known_text(key, known[location])

    async def _read_answer(self, verb: str, shared: bool, name: str, *args: Any) -> Any:
        """Return the answer to a read of a collection; the commit checks that it has not changed."""
        if self._written_collections and (shared, name) in self._written_collections:
            raise ReadAfterWrite(f"{name} is read by {verb} after this transaction has written to it; read it first")
        read_id = (shared, verb, name, *args)
        if self._known is None:
            self._known = {}
        if read_id not in self._known:
            answer = await Reads._read_answer(self, verb, shared, name, *args)
            # The answer to HGETALL is a list of two elements for each field: its name and its value.
            element_count = len(answer) // (2 if verb == "HGETALL" else 1) if isinstance(answer, list) else 1
            if element_count > MOST_ELEMENTS:
                raise GuardTooLarge(
                    f"{name} has more than {MOST_ELEMENTS} elements, too many to compare in the commit; "
                    "read it with tx.snapshot, and get() a version key that each of its writers changes",
                    key=name,
                )
            # Another task of the handler may have read the same meanwhile. Then its answer is the one that is guarded.
            if read_id not in self._known:
                self._known[read_id] = answer
                self._writer(shared).expect_answer(verb, name, args, answer)
        return self._known[read_id]

    def _is_in_deleted_hash(self, key: KeyOrField[Any]) -> bool:
        """Return whether this transaction has deleted the whole hash of a field."""
        shared, name, _ = key.location
        return self._written_collections is not None and self._written_collections.get((shared, name), False)

    # Writes

    def _writer(self, shared: bool) -> Writer:
        return self._effects.shared if shared else self._effects

    # Later reads of this transaction return the `text`: None after a deletion. After `add` they raise ReadAfterWrite.
    def _remember(self, key: KeyOrField[Any], text: str | _Added | None) -> None:
        if self._known is None:
            self._known = {}
        self._known[key.location] = text
        shared, name, field = key.location
        if field is not None:
            self._note_write(shared, name)

    # Later reads of the collection raise ReadAfterWrite, except `get` and `many` of single fields of a hash.
    def _note_write(self, shared: bool, name: str) -> None:
        if self._written_collections is None:
            self._written_collections = {}
        self._written_collections.setdefault((shared, name), False)

    def set(self, key: Key[T] | Field[T], value: T, *, ttl: timedelta | None = None) -> None:
        """Set a value or a field of a hash. A value can have a `ttl`, which begins with the commit; a field cannot."""
        if not isinstance(key, KeyOrField):
            raise UsageError(f"set() takes a value or the field of a hash, not {key!r:.100}")
        location = shared, name, field = key.location
        text = key.encode(value)
        # `_writer` and `_remember` are written out in this method, to save two calls.
        writer = self._effects.shared if shared else self._effects
        if field is not None:
            if ttl is not None:
                raise UsageError(f"{key}: a field of a hash cannot have a ttl; use a value of its own")
            writer.hset(name, {field: text})
            self._note_write(shared, name)
        elif ttl is None:
            writer.set_text(name, text)
        else:
            writer.set(name, text, "PX", _ttl_ms(ttl))
        if self._known is None:
            self._known = {location: text}
        else:
            self._known[location] = text

    def add(self, key: Key[int] | Field[int], by: int = 1) -> None:
        """Add `by` to an integer. An absent integer counts as 0.

        The commit does the addition. So the handler need not read the integer, and `add` causes no conflict.
        """
        shared, name, field = checked_key(key).location
        if key.codec.kind is not int:
            raise UsageError(
                f"add() is for integers, and {key} is of {type_name_of(key.codec.kind)}; use get() and set()"
            )
        if type(by) is not int:
            raise UsageError(f"add() adds an integer to {key}, not {by!r:.100}")
        if isinstance(key, Key) and key.default != 0:
            raise UsageError(f"{key} has the default {key.default!r}, and add() counts from 0; use get() and set()")
        if field is None:
            self._writer(shared).incrby(name, by)
        else:
            self._writer(shared).write("HINCRBY", name, field, by)
        self._remember(key, _ADDED)

    def delete(self, key: Deletable) -> None:
        """Delete a value, a hash's field, or a whole hash, set or sorted set."""
        if isinstance(key, KeyOrField):
            shared, name, field = key.location
            if field is None:
                self._writer(shared).delete(name)
            else:
                self._writer(shared).hdel(name, field)
            self._remember(key, None)
            return
        if not isinstance(key, Hash | Set | SortedSet):
            raise UsageError(f"delete() takes a value, field, hash or set that Operations defined, not {key!r:.100}")
        self._writer(key.shared).delete(key.name)
        if self._known:
            # Forget the texts of single fields. Their expectations stay, so the commit still checks what was read. An
            # id in `_known` begins with whether its key is shared, and the name of the key.
            for known_id in [known_id for known_id in self._known if known_id[:2] == (key.shared, key.name)]:
                del self._known[known_id]
        self._written_collections = {**(self._written_collections or {}), (key.shared, key.name): True}

    def insert(self, into: Set[T], *members: T) -> None:
        """Insert members into a set."""
        check_type(into, Set, "insert() is for a set")
        if members:
            self._writer(into.shared).write("SADD", into.name, *map(into.encode, members))
            self._note_write(into.shared, into.name)

    def put(self, into: SortedSet[T], scores: Mapping[T, float]) -> None:
        """Put members into a sorted set, each with its score."""
        check_type(into, SortedSet, "put() is for a sorted set")
        check_type(scores, Mapping, "put() takes scores by their members, such as {member: 1.5}")
        if scores:
            self._writer(into.shared).zadd(
                into.name, {into.encode(member): _score_text(score) for member, score in scores.items()}
            )
            self._note_write(into.shared, into.name)

    def remove(self, of: Set[T] | SortedSet[T], *members: T) -> None:
        """Remove members of a set or a sorted set."""
        check_type(of, (Set, SortedSet), "remove() is for a set or a sorted set; delete() is for the rest")
        if members:
            verb = "SREM" if isinstance(of, Set) else "ZREM"
            self._writer(of.shared).write(verb, of.name, *map(of.encode, members))
            self._note_write(of.shared, of.name)

    # Requests

    @overload
    def send(
        self,
        op: Operation[None, Any],
        *,
        to: Address | None = ...,
        after: timedelta | None = ...,
        at: datetime | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> Ticket: ...
    @overload
    def send(
        self,
        op: Operation[B, Any],
        body: B,
        *,
        to: Address | None = ...,
        after: timedelta | None = ...,
        at: datetime | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> Ticket: ...
    def send(
        self,
        op: Operation[Any, Any],
        body: Any = None,
        *,
        to: Address | None = None,
        after: timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
        keep: timedelta = KEEP,
    ) -> Ticket:
        """Send a request with the commit; nobody waits for its reply. Without `to` it goes to the replica's class.

        The request begins at once, `after` some time, or `at` a moment of Redis's clock. If the idempotency `key` was
        used before for the same operation and body, nothing is sent. If it was used with another body, the transaction
        has no effect, and the caller of the running handler gets KeyReused. Raises UsageError, InvalidBody, KeyReused.
        """
        address = Class(self.cls) if to is None else to
        return add_send(self._effects, op, body, address, Due.of(after, at), Once.of(key, keep))

    def forward(self, op: Operation[B, Any], body: B, *, to: Address) -> None:
        """Let another replica answer this request, or a part of it. `op` must be the operation that runs now.

        The other replica gets a request with this `body`. A handler that forwards the whole request returns None: then
        it gives no reply of its own.
        """
        op_name, body_json = checked_request(op, body)
        if op_name != self.request.op:
            raise UsageError(f"{self.request.op} cannot be forwarded as {op_name}; use send()")
        self._effects.forward(checked_address(to), body_json)


def _ttl_ms(ttl: timedelta) -> int:
    if not isinstance(ttl, timedelta) or not timedelta(0) < ttl <= LONGEST_DELAY:
        raise UsageError(f"ttl= is a time such as timedelta(minutes=5), not {ttl!r:.100}")
    # Redis refuses a ttl of 0 ms. As with delays, Lua must be able to compare the moment of the expiry exactly.
    return max(1, round(ttl.total_seconds() * 1000))


def _score_text(score: float) -> str:
    if not isinstance(score, int | float) or math.isnan(score):
        raise UsageError(f"a score is a number, not {score!r:.100}")
    return repr(float(score))


def _known_text(key: KeyOrField[Any], text: str | _Added | None) -> str | None:
    """Return the text of a key or field, as this transaction knows it. Raises ReadAfterWrite after `add`."""
    if isinstance(text, _Added):
        raise ReadAfterWrite(f"{key} is read after add(); read it before, or use set()")
    return text


def _warn_once(key: KeyOrField[Any], length: int) -> None:
    """Log that a guarded value is long, the first time for this key or field."""
    if str(key) not in _warned_about and len(_warned_about) < MOST_WARNED:
        _warned_about.add(str(key))
        log.warning(
            "guarded value is long", key=str(key), characters=length, advice="guard a short key that changes with it"
        )
